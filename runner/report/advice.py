"""What each cause of a leak or of an idle parameter means, and what to do about it: a sentence each, and what to paste."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from runner.contract import IdleCause, LeakCause, Record, method_name


class Advice(NamedTuple):
    """What is known of a cause.

    Attributes:
        meaning: what happened, as a sentence.
        fix: what to do about it, as a sentence.
        overrides: arguments of the command line that do it; the first that a run does not have already is shown.
    """

    meaning: str
    fix: str
    overrides: tuple[str, ...] = ()


CLEAN = "method=requires_grad method.clean=true"
NO_GRADIENT = "Give it no gradient and no state, so that the optimizer passes it by."
ADVICE: Final[Mapping[LeakCause, Advice]] = {
    "gradient": Advice(
        "The optimizer stepped it by its gradient.",
        "Let backward compute no gradient for it, or keep it out of the optimizer.",
        ("method=requires_grad", "method=exclude"),
    ),
    "weight_decay": Advice(
        "Its gradient was zero and not None, so the optimizer stepped it all the same, and weight decay moved it.",
        NO_GRADIENT,
        (CLEAN, "method=exclude"),
    ),
    "optimizer_state": Advice(
        "Its gradient was zero and not None, and momentum or other state of earlier steps went on moving it.",
        NO_GRADIENT,
        (CLEAN, "method=exclude"),
    ),
    "weight_decay|optimizer_state": Advice(
        "Its gradient was zero and not None, and weight decay together with the state of earlier steps moved it.",
        NO_GRADIENT,
        (CLEAN, "method=exclude"),
    ),
    "optimizer_rule": Advice(
        "Its gradient was zero and not None, and this optimizer moves such a parameter by its own rule, as ASGD does.",
        NO_GRADIENT,
        (CLEAN, "method=exclude"),
    ),
    "optimizer_ignores_lr": Advice(
        "Its learning rate was 0, and this optimizer moves parameters all the same, as Rprop does.",
        "Do not freeze by the learning rate under this optimizer.",
        ("method=requires_grad", "method=exclude"),
    ),
    "scheduler": Advice(
        "The scheduler raised the learning rate of its group above 0.",
        "Set the rate to 0 again before each step, or do not freeze by the learning rate.",
        ("method=zero_lr method.guard=true", "method=requires_grad"),
    ),
    "forward_write": Advice(
        "The forward pass of its module wrote to it, as BatchNorm in train mode does to its statistics.",
        "Hold the frozen modules in eval mode, which keeps BatchNorm and dropout still.",
        ("freeze.buffers=frozen",),
    ),
    "outside_write": Advice(
        "Code outside of the forward pass and of the optimizer’s step wrote to it, such as a hook or an average.",
        "Find that code: no method of freezing prevents it.",
    ),
    "replaced": Advice(
        "Another tensor with other values was put in its place, as load_state_dict(assign=True) does.",
        "Find the code that assigns it, and let it copy the values before the training instead.",
    ),
    "dtype_changed": Advice(
        "It was converted to another dtype during the training, as model.half() does.",
        "Convert the model before the training begins.",
    ),
    "shared_tensor": Advice(
        "It shares its memory with a tensor that the optimizer steps, so that a step of the one moves the other.",
        "Freeze the tensor that it shares memory with too, or give it memory of its own.",
    ),
    "unknown": Advice(
        "No experiment told what moved it.",
        "Read the notes of the run: they say what would be needed to tell.",
    ),
}
WRITTEN_PARAMETER = Advice(
    "The forward pass of its module wrote to it, as Embedding(max_norm=...) does to its rows.",
    "Change the module: no method of freezing prevents what its own forward pass writes.",
)
BY_DESIGN = Advice(
    "method=none does nothing about what is declared frozen: it is the baseline that trains everything.",
    "Nothing is to be done.",
)
IDLE_ADVICE: Final[Mapping[IdleCause, Advice]] = {
    "not_in_optimizer": Advice(
        "No optimizer had it.",
        "Put all that is to train into a group, or freeze it and so say that it is not to train.",
        ("groups=role",),
    ),
    "no_gradient": Advice(
        "It got no gradient in any step: the loss does not depend on it, or its requires_grad was off from the start.",
        "If the model was built with it frozen, declare that; else find where the graph is cut.",
        ("freeze=as_built",),
    ),
    "zero_gradient": Advice(
        "Its gradient was exactly zero in every step, as of units that never fire or of rows that no batch used.",
        "Train on more batches, or look at its inputs and initial values.",
    ),
    "lr_zero": Advice(
        "The learning rate of its group was 0 in every step.",
        "Raise it (optimizer.lr, groups.lr), or train on beyond the warm-up of the scheduler.",
    ),
    "rounded_away": Advice(
        "Each update was smaller than its dtype can hold, so that it was rounded away.",
        "Raise the learning rate, or keep the weights in float32 and compute in the shorter dtype.",
        ("model.dtype=float32 autocast=true",),
    ),
    "unknown": Advice(
        "It could not be told why it did not change.",
        "Read the notes of the run: they say what was not seen.",
    ),
}


def advice_on_leak(cause: str, kind: str, record: Record) -> Advice:
    """Return the advice on why a frozen tensor changed, with at most one override: the first that the run does not have.

    `cause`, `kind`: of the tensor's row; a cause that is not known here gets the advice on `unknown`. `record`: the content
    of the run's `run.json`.
    """
    advice = ADVICE.get(cause, ADVICE["unknown"])  # type: ignore[call-overload]
    if cause == "forward_write" and kind == "parameter":
        advice = WRITTEN_PARAMETER
    new = [override for override in advice.overrides if not _has(record, override)]
    return Advice(advice.meaning, advice.fix, tuple(new[:1]))


def advice_on_idle(cause: str, record: Record) -> Advice:
    """Return the advice on why a trainable parameter did not change, without overrides that the run has.

    An unknown cause gets the advice on `unknown`.
    """
    advice = IDLE_ADVICE.get(cause, IDLE_ADVICE["unknown"])  # type: ignore[call-overload]
    given = set(record["overrides"])
    return Advice(advice.meaning, advice.fix, tuple(each for each in advice.overrides if not given >= set(each.split())))


def _has(record: Record, override: str) -> bool:
    """Return whether a run was told already what an override says."""
    method = record["method"]
    told = {f"method.{key}": str(value).lower() for key, value in method.items()}
    told |= {"method": method_name(str(method.get("_target_", ""))), "freeze.buffers": record["buffers"]}
    parts = [part.partition("=") for part in override.split()]
    return all(told.get(key) == value for key, _, value in parts)

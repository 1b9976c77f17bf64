"""Foresee what would go wrong in anyone's training loop, in one call before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.errors import ConfigError, listed, short_repr
from runner.foresight.hazards import Hazard, buffer_hazards, idle_hazards, leak_hazards
from runner.foresight.in_place import Loop, Trial, rehearse_in_place
from runner.foresight.lines import Lines
from runner.foresight.rehearsal import Rehearsal
from runner.foresight.unreached import why_unreached
from runner.freezing.groups import group_lr
from runner.freezing.selection import Selection
from runner.proof.audit import as_module, selection_of
from runner.proof.causes.optimizer_copy import stepped_tensors
from runner.proof.results.notes import flag_notes
from runner.tensors import TensorEntry, refuse_unless_dense
from runner.training.tasks.given import given_task
from runner.training.tasks.losses import LossFunction
from runner.training.tasks.trained import TrainedTask


def foresee(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer,
    batch: Any,
    loss: LossFunction | None = None,
    frozen: Selection | Sequence[str] | None = None,
    *,
    task: Any = None,
    scheduler: Any = None,
    set_to_none: bool = True,
    zero_grad: str | None = None,
    buffers: str = "live",
) -> list[Hazard]:
    """Return what would go wrong in a training: what would leak, drift or stay idle, why, and the line to change.

    Makes two to ten steps of the training with this batch, and puts everything back to the last bit: the model with its
    buffers, modes and gradients, what optimizer and scheduler hold, and the random states. Hooks run in these steps, too.
    What happens only with other batches, or only later, is not foreseen; of a scheduler, a thousand steps are. Raises
    ConfigError (a ValueError) for bad arguments, and what the model and the loss raise.

    Args:
        model: a module, or a mapping of several; each module in train or eval mode as it is to be trained.
        optimizer: a torch optimizer, as it is before the first step.
        batch: a batch on the device of the model.
        loss: a function (output, target), such as `nn.CrossEntropyLoss()`; None: as by `task.loss=auto`, the model's own or
            the cross entropy.
        frozen: patterns of names, or what `select` returns. None: all parameters with `requires_grad` False.
        task: a function (model, batch) -> loss, instead of `loss`.
        scheduler: the scheduler that is called after each step, or a function that builds it for the optimizer. Some change
            the rates when they are built: only with the function are these known as the scheduler's.
        set_to_none: False if the loop calls `optimizer.zero_grad(set_to_none=False)`.
        zero_grad: "before" if the loop calls it before `backward`, "after" if after the step, so that the first step is made
            with the gradients that are there now, too. None: what only these would change has the verdict `unknown`.
        buffers: with "frozen", the buffers of the frozen modules are declared frozen too; see `select`.
    """
    module = as_module(model)
    _check_arguments(optimizer, scheduler, zero_grad)
    called = TrainedTask(given_task(loss, task))
    refuse_unless_dense(module)
    how = {"batch": batch, "scheduler": scheduler, "set_to_none": set_to_none, "zero_grad": zero_grad}
    loop = Loop(module, optimizer, called, model, **how)
    trial_of_head = {} if loop.has_several_models else {"batch": batch, "task": called}
    selection = selection_of(module, frozen, buffers, **trial_of_head)
    return list(_hazards(loop, selection, by_flags=frozen is None))


def _hazards(loop: Loop, selection: Selection, *, by_flags: bool) -> Iterator[Hazard]:
    """Rehearse the loop, and yield all that would go wrong. `by_flags`: whether flags were to say what is frozen."""
    trial = rehearse_in_place(loop, selection)
    yield from _of_trial(loop, selection, trial)
    yield from _of_what_is_unknown(loop, trial)
    if loop.zero_grad is None:
        yield from _of_left_gradients(loop, selection, trial)
    if by_flags and not selection.parameters:
        yield _unknown("nothing is declared frozen: no parameter has requires_grad=False; give patterns")


def _check_arguments(optimizer: Any, scheduler: Any, zero_grad: Any) -> None:
    """Raise ConfigError if one of these is not what it has to be."""
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}; give one torch optimizer, and call foresee for each")
    if scheduler is not None and (isinstance(scheduler, type) or not (hasattr(scheduler, "step") or callable(scheduler))):
        raise ConfigError(f"scheduler is {short_repr(scheduler)}; give a scheduler, or a function (optimizer) -> scheduler")
    if zero_grad not in (None, "before", "after"):
        raise ConfigError(
            f"zero_grad is {short_repr(zero_grad)}; give 'before' or 'after' (the step), or None; see set_to_none"
        )


def _of_trial(loop: Loop, selection: Selection, trial: Trial) -> Iterator[Hazard]:
    """Yield what the rehearsed steps have shown."""
    if trial.rehearsal is None:
        return
    entries, rehearsal = trial.before.entries, trial.rehearsal
    lines = Lines(loop, entries, selection)
    for hazard in leak_hazards(rehearsal, "the loop", type(loop.optimizer).__name__):
        yield replace(hazard, line=lines.line_for(hazard), sentence=f"{hazard.sentence}{_in_brackets(hazard, lines, trial)}")
    yield from _of_ties(lines, rehearsal)
    owners = {name: entry.owner for name, entry in entries.items()}
    for hazard in buffer_hazards(rehearsal, selection.parameters, owners, remedy="eval mode"):
        is_written = trial.written.issuperset(hazard.names)
        yield replace(hazard, line=lines.line_for(hazard), cause=hazard.cause if is_written else "unknown")
    names = [row["name"] for row in rehearsal.rows if (row["verdict"], row["cause"]) == ("idle", "no_gradient")]
    unreached = why_unreached(names, loop.model, entries, trial.calls) if trial.calls is not None else {}
    for hazard in idle_hazards(rehearsal, unreached):
        if hazard.cause != "lr_zero" or not _may_be_scheduled(loop, hazard.names, entries):
            yield replace(hazard, line=lines.line_for(hazard) or hazard.line)
    if not any(row["verdict"] in ("trained", "returned", "idle") for row in rehearsal.rows):
        yield Hazard("idle", (), "", "nothing would be trained: every parameter is declared frozen")
    yield from _of_absent_tensors(loop, trial)


def _in_brackets(hazard: Hazard, lines: Lines, trial: Trial) -> str:
    """Return what else to know about a leak, in brackets: why its cause is unknown, and the ties of what leaks."""
    told = sorted({trial.why_unknown[name] for name in hazard.names} - {""}) if hazard.cause == "unknown" else []
    ties = [(declared[0], others) for declared, others in map(lines.tie_of, hazard.names) if others]
    if ties:
        tied = listed([f"{listed(others, most=2)}, the same tensor as {name}" for name, others in ties], most=2)
        told.append(f"not declared frozen: {tied}")
    return f" ({'; '.join(told)})" if told else ""


def _of_ties(lines: Lines, rehearsal: Rehearsal) -> Iterator[Hazard]:
    """Yield the names that are frozen only because their tensor is declared frozen under another name."""
    for row in rehearsal.rows:
        declared, others = lines.tie_of(row["name"])
        if row["frozen"] and others and not (row["verdict"] == "leaked" and row["requires_grad"]):
            sentence = (
                f"{listed(others, most=2)} would stay idle: the same tensor as {declared[0]}, which is declared frozen"
            )
            yield Hazard("idle", tuple(others), "shared_tensor", sentence, line=lines.line_for_tie(row["name"]))


def _of_absent_tensors(loop: Loop, trial: Trial) -> Iterator[Hazard]:
    """Yield a hazard if the optimizer holds tensors that get no gradient and are not in the model."""
    in_model = {id(entry.tensor) for entry in trial.before.entries.values()}
    absent = [each for each in stepped_tensors(loop.optimizer) if id(each) not in in_model]
    unused = ["x".join(map(str, each.shape)) or "scalar" for each in absent if id(each) in trial.without_gradient]
    if unused:
        sentence = (
            f"{type(loop.optimizer).__name__} holds {len(unused)} tensor{'s' * (len(unused) > 1)} that the model does not "
            f"have ({listed(unused, most=3)}): a layer was replaced or made anew after the optimizer was built, or it is "
            "another model's; build the optimizer when the model is complete"
        )
        yield Hazard("idle", (), "not_in_optimizer", sentence)


def _of_what_is_unknown(loop: Loop, trial: Trial) -> Iterator[Hazard]:
    """Yield what cannot be foreseen, and flags that were set where they freeze nothing."""
    if trial.error:
        yield _unknown(f"what would change cannot be foreseen: {trial.error}")
    yield from map(_unknown, flag_notes(loop.model))
    not_finite = [number for number, value in enumerate(trial.losses, 1) if not isfinite(value)]
    if not_finite:
        value = trial.losses[not_finite[0] - 1]
        yield _unknown(f"the loss is {value} at step {not_finite[0]}: what trains becomes NaN or infinite")
    if not loop.model.training and list(loop.model.buffers()):
        yield _unknown("the model is in eval mode: what train mode does to its buffers is not foreseen", "model.train()")
    entries = {name: entry for name, entry in trial.before.entries.items() if entry.kind == "parameter"}
    scheduled = tuple(name for name in entries if _may_be_scheduled(loop, [name], entries))
    if scheduled:
        sentence = f"a scheduler sets the learning rate of {listed(scheduled, most=2)}, now 0: whether it rises is not known"
        yield replace(_unknown(sentence, "foresee(..., scheduler=scheduler)"), names=scheduled)


def _of_left_gradients(loop: Loop, selection: Selection, trial: Trial) -> Iterator[Hazard]:
    """Yield what would leak besides if the loop removed gradients after each step only, for each cause.

    `trial`: steps of a loop that removes them before each step. The others are made only if there are gradients of frozen
    parameters, of which 0 is one: weight decay and the state of the optimizer go with it.
    """
    left = {id(each) for each, _ in loop.left_gradients if each in selection}
    names = tuple(name for name, entry in trial.before.entries.items() if id(entry.tensor) in left)
    if not names:
        return
    other = rehearse_in_place(replace(loop, zero_grad="after"), selection)
    if other.rehearsal is None or trial.rehearsal is None:
        yield replace(
            _unknown(f"whether gradients of earlier steps change {listed(names, most=2)} is not foreseen"), names=names
        )
        return
    leaked = {row["name"] for row in trial.rehearsal.rows if row["verdict"] == "leaked"}
    phases = [
        replace(phase, rows=[row for row in phase.rows if row["name"] not in leaked]) for phase in other.rehearsal.phases
    ]
    for hazard in leak_hazards(replace(other.rehearsal, phases=phases), "the loop", type(loop.optimizer).__name__):
        sentence = f"if the loop calls zero_grad only after the step, gradients that are there now count: {hazard.sentence}"
        yield replace(hazard, verdict="unknown", sentence=sentence, line="optimizer.zero_grad()")


def _unknown(sentence: str, line: str = "") -> Hazard:
    """Return a hazard that is about no tensor in particular."""
    return Hazard("unknown", (), "unknown", sentence, line=line)


def _may_be_scheduled(loop: Loop, names: Sequence[str], entries: Mapping[str, TensorEntry]) -> bool:
    """Return whether one of these parameters needs a gradient and is in a group at rate 0 that an unknown scheduler sets.

    A scheduler of torch leaves the rate that a group began with in the group.
    """
    ids = {id(entries[name].tensor) for name in names if entries[name].tensor.requires_grad}
    groups = [group for group in loop.optimizer.param_groups if group_lr(group) == 0 and "initial_lr" in group]
    return loop.scheduler is None and any(id(parameter) in ids for group in groups for parameter in group["params"])

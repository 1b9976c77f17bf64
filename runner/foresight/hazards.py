"""Turn a rehearsal into hazards: what would go wrong in a training, why, and in a sentence.

A frozen tensor leaks if the training changes it all the same. A trainable parameter is idle if it never changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

from runner.contract import Cause
from runner.errors import listed
from runner.foresight.rehearsal import Rehearsal
from runner.foresight.unreached import Unreached

CAUSES_WITHOUT_BATCH = ("scheduler", "optimizer_ignores_lr", "weight_decay", "optimizer_state", "optimizer_rule")
"""The causes of a change in frozen tensors that can be predicted without running a batch through the model."""


@dataclass(frozen=True)
class Hazard:
    """Something that would go wrong in a training.

    Attributes:
        verdict: `leaked` (frozen tensors would change), `idle` (trainable parameters would not, or what stands at names that
            only a tie freezes), `drifted` (buffers of modules with frozen parameters would change), or `unknown` (it cannot
            be foreseen; the sentence says why).
        names: the names of these tensors in the model; none if the hazard is about no tensor of the model.
        cause: why, in the words of the column `cause` of `changes.csv`.
        sentence: what would happen, for a person.
        line: what to change: a line of Python to add, in which `model` and `optimizer` are what was given, or a line of the
            user's own as `FILE, line N: TEXT`. "" if none is known.
    """

    verdict: Literal["leaked", "idle", "drifted", "unknown"]
    names: tuple[str, ...]
    cause: Cause
    sentence: str
    line: str = ""

    def __str__(self) -> str:
        return f"{self.sentence}; change: {self.line}" if self.line else self.sentence


def leak_hazards(rehearsal: Rehearsal, method: str, optimizer: str, causes: Sequence[str] = ()) -> list[Hazard]:
    """Return which frozen tensors would leak (change all the same) and why: a hazard for each pair of cause and group.

    `rehearsal`: the predictions. `method`, `optimizer`: the names that the sentences use. `causes`: if not empty, only leaks
    with one of these causes are reported.
    """
    known, hazards = set[tuple[Cause, str]](), []
    for phase in rehearsal.phases:
        names_of: dict[tuple[Cause, str], list[str]] = {}
        for row in phase.rows:
            is_wanted = not causes or any(cause in causes for cause in row["cause"].split("|"))
            if row["verdict"] == "leaked" and is_wanted and (row["cause"], row["name"]) not in known:
                known.add((row["cause"], row["name"]))
                names_of.setdefault((row["cause"], row["group"]), []).append(row["name"])
        for (cause, group), names in names_of.items():
            lrs = {step: rates.get(group, nan) for step, rates in rehearsal.lrs.items() if step in phase.steps}
            reason = _describe_cause(cause, group, lrs, rehearsal.scheduler, method=method, optimizer=optimizer)
            hazards.append(Hazard("leaked", tuple(names), cause, f"{reason}: {listed(names, most=2)} would leak"))
    return hazards


def buffer_hazards(
    rehearsal: Rehearsal, frozen: Collection[str], owners: Mapping[str, str], remedy: str = "freeze.buffers=frozen"
) -> list[Hazard]:
    """Return which frozen modules would change their buffers, as BatchNorm does: a hazard for each class of modules.

    `rehearsal`: the predictions. `frozen`: names of the frozen parameters. `owners`: {name of a parameter or buffer: name of
    its module}. `remedy`: what keeps the buffers as they are.
    """
    parameters = {row["name"]: row["name"] in frozen for row in rehearsal.rows if row["kind"] == "parameter"}
    names_of: dict[str, list[str]] = {}
    for row in rehearsal.rows:
        if row["verdict"] == "drifted" and _is_frozen(owners[row["name"]], parameters):
            names_of.setdefault(row["module_type"], []).append(row["name"])
    hazards = []
    for module_type, names in names_of.items():
        modules = listed(sorted({owners[name] for name in names}), most=2)
        sentence = f"buffers of {module_type} {modules} will change (normal; {remedy} stops it)"
        hazards.append(Hazard("drifted", tuple(names), "forward_write", sentence))
    return hazards


def _is_frozen(module: str, parameters: Mapping[str, bool]) -> bool:
    """Return whether a module has a frozen parameter of its own, or else if all are frozen that are in it.

    A module without parameters, such as a BatchNorm with `affine=False`, counts as the module that contains it.
    `parameters`: {name: whether it is frozen}.
    """
    if any(is_frozen and name.rpartition(".")[0] == module for name, is_frozen in parameters.items()):
        return True
    within = [is_frozen for name, is_frozen in parameters.items() if not module or name.startswith(f"{module}.")]
    return all(within) if within or not module else _is_frozen(module.rpartition(".")[0], parameters)


def idle_hazards(rehearsal: Rehearsal, unreached: Mapping[str, Unreached] | None = None) -> list[Hazard]:
    """Return which trainable parameters the training would never change: a hazard for each reason.

    `unreached`: {name: why its parameter gets no gradient}, where more is known than the cause.
    """
    descriptions = {
        "not_in_optimizer": "in no group of the optimizer",
        "no_gradient": "without a gradient",
        "zero_gradient": "all gradients are 0",
        "lr_zero": "the learning rate is 0",
        "rounded_away": "every update is rounded away",
        "unknown": "why is not known",
    }
    names_of: dict[tuple[Cause, Unreached], list[str]] = {}
    for row in rehearsal.rows:
        if row["verdict"] == "idle":
            why = (unreached or {}).get(row["name"], Unreached(descriptions.get(row["cause"], row["cause"])))
            names_of.setdefault((row["cause"], why), []).append(row["name"])
    return [
        Hazard("idle", tuple(names), cause, f"{listed(names, most=2)} would stay idle: {why.reason}", line=why.line)
        for (cause, why), names in names_of.items()
    ]


def _describe_cause(
    cause: str, group: str, lrs: Mapping[int, float], scheduler: object, *, method: str, optimizer: str
) -> str:
    """Return a clause that says why frozen tensors in the parameter group `group` would change.

    `cause`: as in the `cause` column of `changes.csv`. `lrs`: {step: learning rate of the group}, while it is frozen.
    `method`, `optimizer`: the names that the clause uses. For the cause `scheduler`, the clause gives the highest of the
    learning rates and the step at which it is reached.
    """
    if cause == "scheduler":
        step = max(lrs, key=lambda number: lrs[number])
        return (
            f"{method} with {type(scheduler).__name__}: the learning rate of the group {group} becomes "
            f"{lrs[step]:.3g} at step {step}"
        )
    return {
        "optimizer_ignores_lr": f"{optimizer} updates at lr 0",
        "weight_decay": f"{optimizer} applies weight decay at gradient 0",
        "optimizer_state": f"{optimizer} still updates from its state",
        "weight_decay|optimizer_state": f"{optimizer} still updates from weight decay and its state",
        "optimizer_rule": f"{optimizer} updates at gradient 0, without weight decay or state",
        "gradient": f"{method} leaves gradients for {optimizer}",
        "forward_write": "the forward pass writes to frozen tensors",
        "outside_write": "code outside of the model and the optimizer writes to frozen tensors",
        "shared_tensor": f"frozen tensors share memory with parameters that {optimizer} updates",
        "unknown": "why is not known",
    }.get(cause, cause)

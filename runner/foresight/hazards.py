"""Turn a rehearsal (a simulated training on a small stand-in for the model) into sentences that warn the user.

A frozen tensor leaks if the training changes it all the same. A trainable parameter is idle if it never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.contract import Row
from runner.errors import listed
from runner.foresight.rehearsal import Rehearsal

CAUSES_WITHOUT_BATCH = ("scheduler", "optimizer_ignores_lr", "weight_decay", "optimizer_state", "optimizer_rule")
"""The causes of a change in frozen tensors that can be predicted without running a batch through the model."""


def leak_warnings(rehearsal: Rehearsal, method: str, optimizer: str, causes: Sequence[str] = ()) -> list[str]:
    """Return sentences that say which frozen tensors would leak (change all the same) and why.

    There is one sentence for each pair of cause and parameter group. `rehearsal`: the predictions. `method`, `optimizer`:
    the names that the sentences use. `causes`: if not empty, only leaks with one of these causes are reported.
    """
    rows_of: dict[tuple[str, str], list[Row]] = {}
    for row in rehearsal.rows:
        if row["verdict"] == "leaked" and (not causes or any(cause in causes for cause in row["cause"].split("|"))):
            rows_of.setdefault((row["cause"], row["group"]), []).append(row)
    sentences = []
    for (cause, group), rows in rows_of.items():
        reason = _describe_cause(cause, group, rehearsal, method=method, optimizer=optimizer)
        sentences.append(f"{reason}: {listed([row['name'] for row in rows], most=2)} would leak")
    return sentences


def buffer_warnings(rehearsal: Rehearsal, frozen: Sequence[str], owners: Mapping[str, str]) -> list[str]:
    """Return sentences that say which modules with frozen parameters would still change their buffers, as BatchNorm does.

    There is one sentence for each module class. `rehearsal`: the predictions. `frozen`: names of the frozen parameters.
    `owners`: {name of a parameter or buffer: name of its module}.
    """
    frozen_owners = {owners[name] for name in frozen}
    modules_of_type: dict[str, set[str]] = {}
    for row in rehearsal.rows:
        if row["verdict"] == "drifted" and owners[row["name"]] in frozen_owners:
            modules_of_type.setdefault(row["module_type"], set()).add(owners[row["name"]])
    return [
        f"buffers of {module_type} {listed(sorted(modules), most=2)} will change (normal; freeze.buffers=frozen stops it)"
        for module_type, modules in modules_of_type.items()
    ]


def idle_warnings(rehearsal: Rehearsal) -> list[str]:
    """Return sentences that say which trainable parameters the training would never change; one sentence for each cause."""
    descriptions = {
        "not_in_optimizer": "in no group of the optimizer",
        "no_gradient": "without a gradient",
        "zero_gradient": "all gradients are 0",
        "lr_zero": "the learning rate is 0",
    }
    names_of: dict[str, list[str]] = {}
    for row in rehearsal.rows:
        if row["verdict"] == "idle":
            names_of.setdefault(row["cause"], []).append(row["name"])
    return [
        f"{listed(names, most=2)} would stay idle: {descriptions.get(cause, cause)}" for cause, names in names_of.items()
    ]


def _describe_cause(cause: str, group: str, rehearsal: Rehearsal, method: str, optimizer: str) -> str:
    """Return a clause that says why frozen tensors in the parameter group `group` would change.

    `cause`: as in the `cause` column of `changes.csv`. `method`, `optimizer`: the names that the clause uses. For the cause
    `scheduler`, the clause gives the group's highest learning rate while frozen and the step at which it is reached.
    """
    if cause == "scheduler":
        lrs, first = rehearsal.lrs, rehearsal.phases[-1].first
        step = max((number for number in lrs if number >= first), key=lambda number: lrs[number][group])
        return (
            f"{method} with {type(rehearsal.scheduler).__name__}: the learning rate of the group {group} becomes "
            f"{lrs[step][group]:.3g} at step {step}"
        )
    return {
        "optimizer_ignores_lr": f"{optimizer} updates at lr 0",
        "weight_decay": f"{optimizer} applies weight decay at gradient 0",
        "optimizer_state": f"{optimizer} still updates from its state",
        "weight_decay|optimizer_state": f"{optimizer} still updates from weight decay and its state",
        "optimizer_rule": f"{optimizer} updates at gradient 0, without weight decay or state",
        "gradient": f"{method} leaves gradients for {optimizer}",
        "forward_write": "the forward pass writes to frozen tensors",
    }.get(cause, cause)

"""A rehearsal -> sentences: what would move that is declared frozen, who would move it, and what would not train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.contract import Row
from runner.errors import listed
from runner.foresight.rehearsal import Rehearsal

FORESEEN_BY_FLAGS = ("scheduler", "optimizer_ignores_lr", "weight_decay", "optimizer_state", "optimizer_rule")
"""The causes that need no batch: a gradient, or a write in the forward pass, shows itself only in one."""


def leaks(rehearsal: Rehearsal, method: str, optimizer: str, causes: Sequence[str] = ()) -> list[str]:
    """A sentence for each group and cause by which something frozen would leak; `causes` limits them."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rehearsal.rows:
        if row["verdict"] == "leaked" and (not causes or any(cause in causes for cause in row["cause"].split("|"))):
            found.setdefault((row["cause"], row["group"]), []).append(row)
    told = []
    for (cause, group), rows in found.items():
        who = _doing(cause, group, rehearsal, method=method, optimizer=optimizer)
        told.append(f"{who}: {listed([row['name'] for row in rows], most=2)} would leak")
    return told


def drifts(rehearsal: Rehearsal, frozen: Sequence[str], owners: Mapping[str, str]) -> list[str]:
    """A sentence for the live buffers beside frozen parameters that the forward pass would write.

    `owners`: of each tensor's name, the module's.
    """
    with_frozen = {owners[name] for name in frozen}
    drifting = [row for row in rehearsal.rows if row["verdict"] == "drifted" and owners[row["name"]] in with_frozen]
    by_type: dict[str, set[str]] = {}
    for row in drifting:
        by_type.setdefault(row["module_type"], set()).add(owners[row["name"]])
    return [
        f"{kind} {listed(sorted(modules), most=2)} will drift, for its buffers are live; freeze.buffers=frozen holds them"
        for kind, modules in by_type.items()
    ]


def idles(rehearsal: Rehearsal) -> list[str]:
    """A sentence for each cause by which something trainable would stay as it is."""
    why = {
        "not_in_optimizer": "in no group of the optimizer",
        "no_gradient": "reached by no gradient",
        "zero_gradient": "reached by gradients of 0 alone",
        "lr_zero": "stepped at a learning rate of 0",
    }
    found: dict[str, list[str]] = {}
    for row in rehearsal.rows:
        if row["verdict"] == "idle":
            found.setdefault(row["cause"], []).append(row["name"])
    return [f"{listed(names, most=2)} would stay idle: {why.get(cause, cause)}" for cause, names in found.items()]


def _doing(cause: str, group: str, rehearsal: Rehearsal, method: str, optimizer: str) -> str:
    if cause == "scheduler":
        scheduler = type(rehearsal.scheduler).__name__
        first = rehearsal.phases[-1].first
        at = max(
            (number for number in rehearsal.rates if number >= first), key=lambda number: rehearsal.rates[number][group]
        )
        return (
            f"{method} with {scheduler}: the learning rate of the group {group} becomes "
            f"{rehearsal.rates[at][group]:.3g} at step {at}"
        )
    return {
        "optimizer_ignores_lr": f"{optimizer} moves at lr 0",
        "weight_decay": f"{optimizer} decays weights whose gradient is 0",
        "optimizer_state": f"{optimizer} moves on by the state it has gathered",
        "weight_decay|optimizer_state": f"{optimizer} moves on by weight decay and the state it has gathered",
        "optimizer_rule": f"{optimizer} moves on a gradient of 0, without decay or state",
        "gradient": f"{method} does not keep the gradient from {optimizer}",
        "forward_write": "the forward pass writes",
    }.get(cause, cause)

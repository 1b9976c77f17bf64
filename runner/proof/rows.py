"""Make the row of one tensor in the report of an audit."""

from __future__ import annotations

from collections.abc import Sequence

from runner.contract import Cause, Row
from runner.proof.changes import measure_change
from runner.proof.following import Followed
from runner.proof.verdict import idle_cause, verdict


def make_row(row: Followed, aliases: Sequence[str], group: str, lr: float | None, steps_seen: bool) -> Row:
    """Return the row of one tensor in the report: a dict with the columns of `changes.csv`.

    `aliases`: the other names that its tensor has at the end. `group`, `lr`: the name and learning rate of its parameter
    group, or "" and None if it is in none. `steps_seen`: whether the audit has seen a step of an optimizer.
    """
    change = measure_change(row.reference if row.frozen or row.on_entry is None else row.on_entry, row.tensor)
    evidence, tensor = row.evidence, row.tensor
    moved_while_frozen = evidence.leaked_before or (change.moved if row.frozen else False)
    word = verdict(row.kind, row.was_frozen, moved_while_frozen if row.was_frozen else change.moved, evidence.differed)
    cause: Cause = (evidence.cause or evidence.fallback_cause or "unknown") if word == "leaked" else ""
    if word == "idle":
        cause = idle_cause(evidence, steps_seen, group != "")
    return {
        "name": row.name,
        "aliases": "|".join(aliases),
        "kind": row.kind,
        "module_type": row.entry.module_type,
        "shape": "x".join(map(str, tensor.shape)),
        "numel": tensor.numel(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "frozen": row.was_frozen,
        "group": group,
        "lr": lr,
        "requires_grad": tensor.requires_grad,
        "initial_l2": change.initial_l2,
        "change_l2": change.change_l2,
        "change_rel": change.change_rel,
        "change_max": change.change_max,
        "moved": change.moved,
        "verdict": word,
        "cause": cause,
    }

"""The row of a tensor in two checkpoints: how far it moved, read in blocks of both files, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, isnan, nan

import torch

from runner.contract import Cause, Row
from runner.proof.changes import Change, measure_change
from runner.proof.checkpoints.names import kind_of
from runner.proof.checkpoints.stored import StoredTensor
from runner.proof.verdict import verdict

BLOCK = 1 << 20  # bytes of a tensor that are read at a time, so that they are in the processor's cache when they are used


def make_row(name: str, before: StoredTensor, after: StoredTensor | None, *, aliases: Sequence[str], is_frozen: bool) -> Row:
    """Return the row of a tensor, with the columns of `changes.csv`.

    `after`: None if it has vanished. `aliases`: its other names after. `is_frozen`: whether it was declared frozen.
    """
    change = Change(None, None, None, moved=True, moved_elements=None) if after is None else change_between(before, after)
    kind = kind_of(name)
    word = verdict(kind, is_frozen, moved=change.moved, differed=False)
    cause: Cause = ""
    if word == "leaked":
        is_converted = after is not None and after.stored_as != before.stored_as
        is_other = after is not None and after.shape != before.shape
        cause = "replaced" if is_other else "dtype_changed" if is_converted else "unknown"
    return {
        "name": name,
        "aliases": "|".join(aliases),
        "kind": kind,
        "module_type": "",
        "shape": "x".join(map(str, before.shape)),
        "numel": before.numel,
        "dtype": before.stored_as,
        "frozen": is_frozen,
        "group": "",
        "lr": None,
        "requires_grad": kind == "parameter" and not is_frozen,
        "initial_l2": change.initial_l2,
        "change_l2": change.change_l2,
        "change_rel": change.change_rel,
        "change_max": change.change_max,
        "moved": change.moved,
        "moved_elements": change.moved_elements,
        "seen_at": None,
        "verdict": word,
        "cause": cause,
    }


def change_between(before: StoredTensor, after: StoredTensor) -> Change:
    """Return how far a tensor moved from one checkpoint to another, as `measure_change` does; read in blocks."""
    if before.shape != after.shape or before.stored_as != after.stored_as:
        return Change(None, None, None, moved=True, moved_elements=None)
    has_norms = before.stored_as == str(before.dtype).removeprefix("torch.")
    size = min(max(1, BLOCK // before.dtype.itemsize), max(1, before.numel))
    memory = torch.empty(2, size * before.dtype.itemsize, dtype=torch.uint8)
    found = [
        measure_change(before.read(start, count, memory[0]), after.read(start, count, memory[1]))
        for start in range(0, before.numel, size)
        for count in [min(size, before.numel - start)]
    ]
    elements = [each.moved_elements for each in found]
    return Change(
        initial_l2=_norm([each.initial_l2 for each in found]) if has_norms else None,
        change_l2=_norm([each.change_l2 for each in found]) if has_norms else None,
        change_max=_largest([each.change_max for each in found]) if has_norms else None,
        moved=any(each.moved for each in found),
        moved_elements=sum(each or 0 for each in elements) if has_norms and None not in elements else None,
    )


def _norm(norms: Sequence[float | None]) -> float | None:
    """Return the Euclidean norm of a tensor from those of its blocks; None if one is None."""
    known = [each for each in norms if each is not None]
    return hypot(*known) if len(known) == len(norms) else None


def _largest(values: Sequence[float | None]) -> float | None:
    """Return the largest value, NaN if one is NaN, 0 if there are none; None if one is None."""
    known = [each for each in values if each is not None]
    if len(known) < len(values):
        return None
    return nan if any(map(isnan, known)) else max(known, default=0.0)

"""Runs -> a heatmap of parameters x runs that fits a page: how far each moved, and the mark of what a colour cannot say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.report.grouping import by_method, names, seed_groups
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import counted

MOST_COLUMNS, MOST_ROWS = 48, 140
# What a cell may be marked with, from the gravest; the first that any tensor of a cell has is the cell's.
MARKS = {
    "leaked": "leaked",
    "nan": "became NaN",
    "idle": "trainable, but idle",
    "returned": "moved and was put back",
    "started at 0": "moved from exactly 0",
    "zero": "exactly 0",
}


@dataclass(frozen=True)
class Heatmap:
    """Rows, `parameters` of them before buffers, x columns: log10 of the relative change or None; marks; what it shows."""

    rows: list[str]
    parameters: int
    columns: list[str]
    values: list[list[float | None]]
    marks: list[list[str]]
    said: str


def heatmap_of(runs: Sequence[Run]) -> Heatmap | None:
    """The heatmap of the runs that have tables; to fit, runs are grouped by seed or by method, and parameters by module."""
    measured = [run for run in runs if run.tensors]
    if not measured:
        return None
    columns, said = _columns(measured)
    columns = dict(list(columns.items())[:MOST_COLUMNS])
    kinds = {row.name: row.kind for members in columns.values() for run in members for row in run.tensors}
    every = sorted(kinds, key=lambda name: kinds[name] == "buffer")
    levels, row_of = _row_names(every)
    found: dict[tuple[str, str], list[TensorRow]] = {}
    for column, members in columns.items():
        for run in members:
            for tensor in run.tensors:
                found.setdefault((row_of(tensor.name), column), []).append(tensor)
    rows = levels[:MOST_ROWS]
    if len(levels) < len(every):
        said += " Parameters are grouped by module: each cell shows the gravest and the largest of its tensors."
    if len(levels) > MOST_ROWS:
        said += f" Shown are the first {MOST_ROWS} of {len(levels):,} rows."
    cell = {key: (_value(tensors), _mark(tensors)) for key, tensors in found.items()}
    picked = [[cell.get((row, column), (None, "")) for column in columns] for row in rows]
    return Heatmap(
        rows=rows,
        parameters=len({row_of(name) for name in every if kinds[name] != "buffer"} & set(rows)),
        columns=list(columns),
        values=[[value for value, _ in line] for line in picked],
        marks=[[mark for _, mark in line] for line in picked],
        said=said,
    )


def _columns(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], str]:
    short = names(runs)
    one_each = {short[run.label]: [run] for run in runs}
    if len(one_each) <= MOST_COLUMNS:
        return one_each, "A column is a run; its colour is how far a tensor moved, relative to its norm at the start."
    by_cell: dict[str, list[Run]] = {}
    for cell in seed_groups(runs):
        by_cell.setdefault(cell.name, []).extend(cell.runs)
    if len(by_cell) <= MOST_COLUMNS:
        return by_cell, f"A column is the runs alike but for the seed, of {counted(len(runs), 'run')}: the gravest of them."
    methods = by_method(runs)
    said = f"A column is all runs of a method, of {counted(len(runs), 'run')}: each cell shows the gravest and the largest."
    if len(methods) > MOST_COLUMNS:
        said += f" Shown are {MOST_COLUMNS} of {len(methods):,} methods."
    return methods, said


def _row_names(every: Sequence[str]) -> tuple[list[str], Callable[[str], str]]:
    """Row names, few enough where dropping the last parts of dotted names can make them so, and the row of a name."""
    deepest = max(name.count(".") for name in every) + 1
    for depth in range(deepest, 0, -1):
        shortened = {name: ".".join(name.split(".")[:depth]) for name in every}
        rows = list(dict.fromkeys(shortened.values()))
        if len(rows) <= MOST_ROWS:
            break
    return rows, lambda name: shortened[name]


def _value(tensors: Sequence[TensorRow]) -> float | None:
    ratios = [ratio for row in tensors if (ratio := row.change_rel) is not None and math.isfinite(ratio) and ratio > 0]
    return math.log10(max(ratios)) if ratios else None


def _mark(tensors: Sequence[TensorRow]) -> str:
    marks = {_mark_of(row) for row in tensors}
    if len(marks) > 1:
        marks -= {"zero", "started at 0"}
    return next((mark for mark in MARKS if mark in marks), "")


def _mark_of(row: TensorRow) -> str:
    if row.verdict in ("leaked", "idle", "returned"):
        return row.verdict
    if any(change is not None and not math.isfinite(change) for change in (row.change_l2, row.change_rel)):
        return "nan"
    if not row.moved:
        return "zero"
    return "" if row.change_rel else "started at 0"

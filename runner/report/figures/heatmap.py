"""Runs -> a heatmap of tensors x runs, small enough for a page: how far each tensor moved, and a mark for special cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.report.grouping import group_by_method, seed_groups, short_names
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import counted

MAX_COLUMNS, MAX_ROWS = 48, 140
MARKS = {  # the worst first; of a cell with several tensors the worst mark is drawn
    "leaked": "leaked",
    "nan": "became NaN",
    "idle": "trainable, but idle",
    "returned": "moved and was put back",
    "started at 0": "moved from exactly 0",
    "zero": "exactly 0",
}


@dataclass(frozen=True)
class Heatmap:
    """The data of a heatmap.

    `values[row][column]` is log10 of the relative change, or None; `marks[row][column]` is a key of MARKS, or empty.
    The first `parameter_rows` rows are parameters, the others are buffers.
    """

    rows: list[str]
    parameter_rows: int
    columns: list[str]
    values: list[list[float | None]]
    marks: list[list[str]]
    caption: str


def build_heatmap(runs: Sequence[Run]) -> Heatmap | None:
    """The heatmap of the runs that have a `changes.csv`; None if there are none.

    If there are too many runs or tensors, runs are grouped by seed or by method, and tensors by module.
    """
    with_tensors = [run for run in runs if run.tensors]
    if not with_tensors:
        return None
    columns, caption = _group_columns(with_tensors)
    columns = dict(list(columns.items())[:MAX_COLUMNS])
    kinds = {row.name: row.kind for members in columns.values() for run in members for row in run.tensors}
    names = sorted(kinds, key=lambda name: kinds[name] == "buffer")
    all_rows, row_of = _group_rows(names)
    tensors_of: dict[tuple[str, str], list[TensorRow]] = {}
    for column, members in columns.items():
        for run in members:
            for tensor in run.tensors:
                tensors_of.setdefault((row_of(tensor.name), column), []).append(tensor)
    rows = all_rows[:MAX_ROWS]
    if len(all_rows) < len(names):
        caption += " Tensors are grouped by module: a cell shows the largest change and the worst mark of its tensors."
    if len(all_rows) > MAX_ROWS:
        caption += f" Shown are the first {MAX_ROWS} of {len(all_rows):,} rows."
    cells = {key: (_log10_change(tensors), _worst_mark(tensors)) for key, tensors in tensors_of.items()}
    cell_rows = [[cells.get((row, column), (None, "")) for column in columns] for row in rows]
    return Heatmap(
        rows=rows,
        parameter_rows=len({row_of(name) for name in names if kinds[name] != "buffer"} & set(rows)),
        columns=list(columns),
        values=[[value for value, _ in line] for line in cell_rows],
        marks=[[mark for _, mark in line] for line in cell_rows],
        caption=caption,
    )


def _group_columns(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], str]:
    """({column name: its runs}, caption): a run per column; if these are too many, a seed group, or else a method."""
    names = short_names(runs)
    by_run = {names[run.label]: [run] for run in runs}
    if len(by_run) <= MAX_COLUMNS:
        return by_run, "A column is a run; its colour is how far a tensor moved, relative to its norm at the start."
    by_group: dict[str, list[Run]] = {}
    for group in seed_groups(runs):
        by_group.setdefault(group.name, []).extend(group.runs)
    shows = f"of {counted(len(runs), 'run')}: a cell shows their largest change and worst mark."
    if len(by_group) <= MAX_COLUMNS:
        return by_group, f"A column is all runs that differ only in the seed, {shows}"
    by_method = group_by_method(runs)
    caption = f"A column is all runs of a method, {shows}"
    if len(by_method) > MAX_COLUMNS:
        caption += f" Shown are {MAX_COLUMNS} of {len(by_method):,} methods."
    return by_method, caption


def _group_rows(names: Sequence[str]) -> tuple[list[str], Callable[[str], str]]:
    """The row names, and a function from a tensor's name to its row.

    To get at most MAX_ROWS rows, names are cut after as many dotted parts as possible.
    """
    deepest = max(name.count(".") for name in names) + 1
    for depth in range(deepest, 0, -1):
        row_names = {name: ".".join(name.split(".")[:depth]) for name in names}
        rows = list(dict.fromkeys(row_names.values()))
        if len(rows) <= MAX_ROWS:
            break
    return rows, lambda name: row_names[name]


def _log10_change(tensors: Sequence[TensorRow]) -> float | None:
    """log10 of the largest finite relative change; None if nothing moved."""
    ratios = [ratio for row in tensors if (ratio := row.change_rel) is not None and math.isfinite(ratio) and ratio > 0]
    return math.log10(max(ratios)) if ratios else None


def _worst_mark(tensors: Sequence[TensorRow]) -> str:
    """The worst mark of a cell's tensors; `zero` and `started at 0` only count if all its tensors have that mark."""
    marks = {_mark(row) for row in tensors}
    if len(marks) > 1:
        marks -= {"zero", "started at 0"}
    return next((mark for mark in MARKS if mark in marks), "")


def _mark(row: TensorRow) -> str:
    """The mark of one tensor, a key of MARKS, or empty."""
    if row.verdict in ("leaked", "idle", "returned"):
        return row.verdict
    if any(change is not None and not math.isfinite(change) for change in (row.change_l2, row.change_rel)):
        return "nan"
    if not row.moved:
        return "zero"
    return "" if row.change_rel else "started at 0"

"""Make the data of the heatmap: rows are tensors, columns are runs, a cell says how far the tensor moved in the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.report.compare.changes import not_shown
from runner.report.compare.costs import trains_everything
from runner.report.compare.grouping import group_by_method, short_names
from runner.report.compare.settings import build_settings
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import counted

MAX_COLUMNS, MAX_ROWS = 48, 140
MARKS = {  # mark: its text in the legend; the worst first, as a cell shows only the worst mark of its tensors
    "leaked": "leaked",
    "nan": "became NaN",
    "idle": "trainable, but idle",
    "returned": "moved and was put back",
    "started at 0": "moved from exactly 0",
    "zero": "no bit changed",
}


@dataclass(frozen=True)
class Heatmap:
    """The data of a heatmap: rows are parameters and buffers (or groups of them), columns are runs (or groups of them).

    Attributes:
        rows, columns: the names of the rows, the names of the columns.
        parameter_rows: the number of rows for parameters; these rows come first, those for buffers follow.
        values: `values[row][column]` is log10 of the change relative to the tensor's norm at the start; None if there is
            no finite change above 0.
        marks: `marks[row][column]` is a key of MARKS, which flags a special case, or empty.
        caption: the text below the figure.
    """

    rows: list[str]
    parameter_rows: int
    columns: list[str]
    values: list[list[float | None]]
    marks: list[list[str]]
    caption: str


def build_heatmap(runs: Sequence[Run]) -> Heatmap | None:
    """Return the heatmap's data, made from the runs that have rows in their `changes.csv`; None if no run has any.

    A column is a run. If that makes more than MAX_COLUMNS, runs that differ only in the seed share a column. If there are
    still too many, all runs of a method share one. A row is a tensor. If that makes more than MAX_ROWS, the tensors of a
    module share a row. Columns and rows that are still too many are left out.
    """
    with_tensors = [run for run in runs if run.tensors]
    if not with_tensors:
        return None
    columns, caption = group_columns(with_tensors)
    columns = dict(list(columns.items())[:MAX_COLUMNS])
    kinds = {row.name: row.kind for members in columns.values() for run in members for row in run.tensors}
    names = sorted(kinds, key=lambda name: kinds[name] == "buffer")
    all_rows, row_of = _group_rows(names)
    tensors_of: dict[tuple[str, str], list[TensorRow]] = {}
    for column, members in columns.items():
        for run in members:
            for tensor in shown_rows(run):
                tensors_of.setdefault((row_of(tensor.name), column), []).append(tensor)
    rows = all_rows[:MAX_ROWS]
    if len(all_rows) < len(names):
        caption += " Tensors are grouped by module: a cell shows the largest change and the worst mark of its tensors."
    if len(all_rows) > MAX_ROWS:
        caption += f" Shown are the first {MAX_ROWS} of {len(all_rows):,} rows."
    caption = " ".join(filter(None, (caption, not_shown(runs))))
    cells = {key: (_log10_change(tensors), worst_mark(tensors)) for key, tensors in tensors_of.items()}
    cell_rows = [[cells.get((row, column), (None, "")) for column in columns] for row in rows]
    return Heatmap(
        rows=rows,
        parameter_rows=len({row_of(name) for name in names if kinds[name] != "buffer"} & set(rows)),
        columns=list(columns),
        values=[[value for value, _ in line] for line in cell_rows],
        marks=[[mark for _, mark in line] for line in cell_rows],
        caption=caption,
    )


def heatmap_texts(heatmap: Heatmap) -> tuple[str, str]:
    """Return a title and a description of the heatmap, for readers who cannot see the picture."""
    size = f"{len(heatmap.rows)} rows of parameters and buffers, {len(heatmap.columns)} columns of runs"
    return "How far each parameter moved in each run", f"{size}. {heatmap.caption} Marks: {', '.join(MARKS.values())}."


def group_columns(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], str]:
    """Return ({column name: its runs}, caption of the figure).

    A column is one run. If that makes more than MAX_COLUMNS, runs that differ only in the seed share a column. If there are
    still too many, all runs of a method share one.
    """
    columns, caption = _columns(runs)
    if any(run.leaked and trains_everything(run) for run in runs):
        caption += " Under method=none everything trains, so that what moves there is no leak."
    return columns, caption


def _columns(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], str]:
    """Return the columns and the first sentences of the caption; see `group_columns`."""
    names = short_names(runs)
    by_run = {names[run.label]: [run] for run in runs}
    if len(by_run) <= MAX_COLUMNS:
        return by_run, "A column is a run; its colour is how far a tensor moved, relative to its norm at the start."
    by_group: dict[str, list[Run]] = {}
    for group in build_settings(runs, {run.label: {} for run in runs}):
        by_group.setdefault(group.name, []).extend(group.runs)
    shows = f"of {counted(len(runs), 'run')}: a cell shows their largest change and worst mark."
    if len(by_group) <= MAX_COLUMNS:
        return by_group, f"A column is all runs that differ only in the seed, {shows}"
    by_method = group_by_method(runs)
    caption = f"A column is all runs of a method, {shows}"
    if len(by_method) > MAX_COLUMNS:
        caption += f" Shown are {MAX_COLUMNS} of {len(by_method):,} methods."
    return by_method, caption


def shown_rows(run: Run) -> list[TensorRow]:
    """Return the rows of a run as the heatmap shows them: what a run of `method=none` moved by design did not leak there."""
    if not trains_everything(run):
        return run.tensors
    words = {"parameter": "trained", "buffer": "drifted"}
    return [row._replace(verdict=words.get(row.kind, "trained")) if row.verdict == "leaked" else row for row in run.tensors]


def _group_rows(names: Sequence[str]) -> tuple[list[str], Callable[[str], str]]:
    """Return the names of the heatmap's rows, and a function that maps the name of a tensor to the name of its row.

    `names`: the names of all tensors. Each tensor has its own row if that makes at most MAX_ROWS. Otherwise names are cut
    after their first n dotted parts (`layer1.0.conv1.weight` -> `layer1.0` for n = 2), and tensors with equal cut names
    share a row. n is the largest number that makes at most MAX_ROWS rows, and at least 1.
    """
    deepest = max(name.count(".") for name in names) + 1
    for depth in range(deepest, 0, -1):
        row_names = {name: ".".join(name.split(".")[:depth]) for name in names}
        rows = list(dict.fromkeys(row_names.values()))
        if len(rows) <= MAX_ROWS:
            break
    return rows, lambda name: row_names[name]


def _log10_change(tensors: Sequence[TensorRow]) -> float | None:
    """Return log10 of the largest finite relative change of these tensors, or None if no tensor has one above 0."""
    ratios = [ratio for row in tensors if (ratio := row.change_rel) is not None and math.isfinite(ratio) and ratio > 0]
    return math.log10(max(ratios)) if ratios else None


def worst_mark(tensors: Sequence[TensorRow]) -> str:
    """Return the mark of a cell: the worst mark of its tensors, or an empty text if no tensor has a mark.

    Marks such as `leaked` stand for what the colour of a cell cannot show; they are the keys of MARKS, the worst first.
    `zero` (the tensor is exactly 0) and `started at 0` (it moved from exactly 0) are only returned if every tensor in the
    cell has that mark.
    """
    marks = {_mark(row) for row in tensors}
    if len(marks) > 1:
        marks -= {"zero", "started at 0"}
    return next((mark for mark in MARKS if mark in marks), "")


def _mark(row: TensorRow) -> str:
    """Return a tensor's mark: a key of MARKS if the tensor is a special case, an empty text if its change is ordinary."""
    if row.verdict in ("leaked", "idle", "returned"):
        return row.verdict
    if any(change is not None and not math.isfinite(change) for change in (row.change_l2, row.change_rel)):
        return "nan"
    if not row.moved:
        return "zero"
    return "" if row.change_rel else "started at 0"

"""How far each tensor moved in each run: a table of percentages on colours, by module, that unfolds to tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runner.display.units import short_change_text
from runner.report.compare.changes import LIVE, not_shown
from runner.report.compare.modules import build_tree, divide
from runner.report.compare.run_set import RunSet
from runner.report.figures.heatmap import MAX_COLUMNS, group_columns, shown_rows, worst_mark
from runner.report.page.elements import Section
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import counted, shortened

MODULE_SIZE, MAX_MODULES = 20, 200  # see `divide`
MAX_UNFOLDED = 2  # modules with a leak that are unfolded at first
MAX_CELLS = 40_000  # of the rows of tensors
MAX_HEADING = 40  # characters of a column's heading
LEVELS = (0.0, 0.001, 0.01, 0.1, 1.0)  # a relative change above the first has colour 1, from the second on colour 2, ...
LEGEND = ("0: no bit changed", "below 0.1%", "0.1% to 1%", "1% to 10%", "10% to 100%", "100% and more")
SIGNS = {"leaked": "✗", "idle": "○", "returned": "↩"}  # before the percentage, so that these are told by more than colour
NO_PERCENTAGE = "hx"  # the class of the colour of what moved by a change that is no percentage, under one of two signs
SIGN_LEGEND = {
    "✗": "frozen, but leaked",
    "○": "trainable, but idle",
    "↩": "moved, and was put back",
    "NaN": "became NaN",
    "inf": "became infinite",
    "+": "moved from exactly 0, so that there is no percentage",
    "?": "moved; by how much is not recorded",
}


class HeatmapCell(NamedTuple):
    """A cell of the heatmap: its text, such as `✗32%`, and its CSS classes."""

    text: str
    kind: str


@dataclass(frozen=True)
class HeatmapModule:
    """A module of the heatmap: its cells are about all its tensors; below it stands a row for each tensor.

    Attributes:
        name: its dotted name; `the model` for tensors that are in no module.
        count: how many tensors it has, as text.
        has_leak: whether one of its tensors leaked.
        cells: for each column the largest change and the worst mark of its tensors, live buffers (such as the statistics of
            BatchNorm, which drift under every method) apart, unless it has nothing else.
        tensors: (name, cells) of each tensor that is listed.
    """

    name: str
    count: str
    has_leak: bool
    cells: list[HeatmapCell]
    tensors: list[tuple[str, list[HeatmapCell]]]


def heatmap_section(run_set: RunSet) -> Section | None:
    """Return the section with the heatmap; None for one run, and where no run has rows."""
    runs = [run for run in run_set.runs if run.tensors]
    if run_set.single or not runs:
        return None
    columns, caption = group_columns(runs)
    columns = dict(list(columns.items())[:MAX_COLUMNS])
    modules, shown, total = build_modules(columns)
    if shown < total:
        caption += f" Listed are {shown:,} of {total:,} tensors, those that leaked or stayed idle first."
    caption = " ".join(filter(None, (caption, not_shown(run_set.runs))))
    texts = {cell.text for module in modules for cells in (module.cells, *_cells_below(module)) for cell in cells}
    data = {
        "caption": caption,
        "columns": [(shortened(name, MAX_HEADING), name) for name in columns],
        "in_full": list(columns) if any(len(name) > MAX_HEADING for name in columns) else [],
        "modules": modules,
        "unfolded": MAX_UNFOLDED,
        "legend": list(enumerate(LEGEND)),
        "signs": [
            (sign, text, NO_PERCENTAGE if sign in "+?" else "")
            for sign, text in SIGN_LEGEND.items()
            if any(sign in each for each in texts)
        ],
    }
    return Section("heatmap", "How far each tensor moved", "heatmap", data)


def build_modules(columns: dict[str, list[Run]]) -> tuple[list[HeatmapModule], int, int]:
    """Return (the modules, how many tensors are listed, how many there are); modules with a leak come first.

    `columns`: {column: its runs}. If listing all tensors would make more than MAX_CELLS cells, those that leaked, became
    NaN or stayed idle are listed before the others.
    """
    rows_of: dict[str, list[list[TensorRow]]] = {}  # tensor name -> its rows in each column
    rank: dict[str, int] = {}
    for place, runs in enumerate(columns.values()):
        for run in runs:
            for row in shown_rows(run):
                rows_of.setdefault(row.name, [[] for _ in columns])[place].append(row)
                rank[row.name] = min(rank.get(row.name, 2), _rank(row))
    listed = sorted(rows_of, key=lambda name: rank[name])[: MAX_CELLS // len(columns)]
    is_listed = set(listed)
    modules = []
    for name, names in divide(build_tree((name, name) for name in rows_of), MODULE_SIZE, MAX_MODULES):
        cells = [heatmap_cell(without_live_buffers(rows_of, names, place)) for place in range(len(columns))]
        tensors = [(each, [heatmap_cell(rows) for rows in rows_of[each]]) for each in names if each in is_listed]
        leaked = min(rank[each] for each in names) == 0
        count = counted(len(names), "tensor")
        modules.append(HeatmapModule(name or "the model", count, has_leak=leaked, cells=cells, tensors=tensors))
    return sorted(modules, key=lambda module: not module.has_leak), len(listed), len(rows_of)


def without_live_buffers(rows_of: dict[str, list[list[TensorRow]]], names: Sequence[str], place: int) -> list[TensorRow]:
    """Return the rows of tensors in a column without those of buffers that are not frozen, unless there are no others.

    `rows_of`: {tensor name: its rows in each column}. `names`: the names of the tensors. `place`: the column.
    """
    rows = [row for name in names for row in rows_of[name][place]]
    return [row for row in rows if row.verdict not in LIVE] or rows


def heatmap_cell(rows: Sequence[TensorRow]) -> HeatmapCell:
    """Return the cell about the given rows of tensors: the largest known change, and a sign for the worst mark.

    A change that is NaN or infinite is larger than any other.
    """
    if not rows:
        return HeatmapCell("", "")
    mark = worst_mark(rows)
    sign, kind = SIGNS.get(mark, ""), {"leaked": " bad", "idle": " idle"}.get(mark, "")
    changes = [row.change_rel for row in rows if row.moved and row.change_rel is not None]
    strange = [value for row in rows for value in (row.change_rel, row.change_l2) if value and not math.isfinite(value)]
    if strange:
        return HeatmapCell(sign + ("NaN" if any(map(math.isnan, strange)) else "inf"), f"bad{kind}".strip())
    if changes:
        level = max(1, sum(max(changes) >= bound for bound in LEVELS))
        return HeatmapCell(sign + (short_change_text(max(changes)) if max(changes) else "<.1%"), f"h{level}{kind}")
    if not any(row.moved for row in rows):
        return HeatmapCell(f"{sign}0", kind.strip())
    from_zero = any(row.moved and row.change_l2 is not None for row in rows)
    return HeatmapCell(sign + ("+" if from_zero else "?"), f"{NO_PERCENTAGE}{kind}")


def _rank(row: TensorRow) -> int:
    """Return 0 for a tensor that leaked, 1 for one that became NaN or stayed idle, 2 for any other."""
    return {"leaked": 0, "nan": 1, "idle": 1}.get(worst_mark([row]), 2)


def _cells_below(module: HeatmapModule) -> list[list[HeatmapCell]]:
    """Return the cells of each tensor that is listed below a module."""
    return [cells for _, cells in module.tensors]

"""What leaked in the runs of a report: tensors, causes, and how far they moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.display.units import in_digits
from runner.errors import listed
from runner.report.compare.grouping import group_by_method
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, first_rows_text, table_section
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import counted

MAX_LEAK_ROWS = 40


def leaks_section(run_set: RunSet) -> Section | None:
    """Return the section about what leaked; None if nothing did."""
    return table_section("What leaked", leaks_table(run_set.runs))


def leaks_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row for each combination of a leaked tensor (frozen, but changed) and a cause of its change.

    A row has the methods and the number of runs in which the tensor leaked for this cause, and the tensor's largest relative
    change in these runs. Rows are sorted by that change, the largest first. At most MAX_LEAK_ROWS rows are shown.
    """
    leaks: dict[tuple[str, str], list[tuple[float, str]]] = {}  # (tensor, cause) -> (change, method) of each run
    for method, members in group_by_method(runs).items():
        for run in members:
            for row in run.tensors:
                if row.verdict == "leaked":
                    leaks.setdefault((row.name, row.cause or "unknown"), []).append((_change(row), method))
    columns = [
        Column("tensor"),
        Column("cause"),
        Column("methods"),
        Column("runs", True),
        Column("largest relative change", True),
    ]
    rows = [
        [
            TableCell(name),
            TableCell(cause.replace("|", " with ")),
            TableCell(listed(list(dict.fromkeys(method for _, method in found)), most=4)),
            TableCell(str(len(found))),
            TableCell(in_digits(max(found)[0])),
        ]
        for (name, cause), found in sorted(leaks.items(), key=lambda item: -max(item[1])[0])
    ]
    tensors = counted(len({name for name, _ in leaks}), "frozen tensor")
    caption = f"{tensors} leaked, the largest change first{first_rows_text(len(rows), MAX_LEAK_ROWS)}"
    return PageTable("leaks", caption, columns, rows[:MAX_LEAK_ROWS])


def _change(row: TensorRow) -> float:
    """Return a tensor's relative change, or its absolute change if it has no relative one (because it started at 0).

    Infinity if the change is unknown or NaN.
    """
    change = row.change_l2 if row.change_rel is None else row.change_rel
    return math.inf if change is None or math.isnan(change) else change

"""The table of accuracies on held-out data, a row per setting."""

from __future__ import annotations

from collections.abc import Sequence

from runner.display.units import in_digits, in_gflop
from runner.report.page.tables import MAX_TABLE_ROWS, Column, PageTable, TableCell
from runner.report.ranking import rank
from runner.runs.read import Run
from runner.runs.text import counted


def accuracy_table(runs: Sequence[Run]) -> PageTable | None:
    """Return a table of the settings, the most accurate first: accuracy over the seeds, outcome and cost; None without any.

    The last column says whether the range of a setting's accuracies overlaps that of the first.
    """
    ranked = rank(runs)
    if not ranked:
        return None
    columns = [Column("setting"), Column("accuracy, mean", True), Column("lowest", True), Column("highest", True)]
    columns += [Column("seeds", True), Column("GFLOP a step", True), Column("worst outcome"), Column("against the first")]
    rows = []
    for each in ranked[:MAX_TABLE_ROWS]:
        numbers = [each.mean, min(each.values), max(each.values)]
        row = [TableCell(each.name), *(TableCell(in_digits(number)) for number in numbers)]
        row += [TableCell(str(len(each.values))), TableCell(in_gflop(each.flops))]
        apart = "" if each is ranked[0] else "lower" if each.is_told_apart_from(ranked[0]) else "not told apart"
        rows.append([*row, TableCell(each.group.outcome, each.group.outcome), TableCell(apart)])
    caption = (
        f"Accuracy on held-out data of {counted(len(ranked), 'setting')}, the best first. Two are told apart if each has "
        "several seeds and the ranges do not overlap"
    )
    return PageTable("accuracy", caption, columns, rows)

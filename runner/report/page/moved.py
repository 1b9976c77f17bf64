"""What moved in a run: a row for each parameter and buffer, and how far it moved."""

from __future__ import annotations

from collections.abc import Sequence

from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, first_rows_text, table_section
from runner.runs.tables import TensorRow
from runner.runs.text import counted

MAX_TENSOR_ROWS = 5000


def moved_section(run_set: RunSet) -> Section | None:
    """Return the section about what moved in the only run of a report; None for several runs."""
    run = run_set.single
    return table_section("What moved", tensors_table(run.tensors)) if run and run.tensors else None


def tensors_table(tensors: Sequence[TensorRow]) -> PageTable:
    """Return a table with a row per parameter and buffer of a run.

    A row says whether the tensor was declared frozen, its verdict (such as `held`), the cause if it leaked or stayed idle,
    and how far it moved. At most MAX_TENSOR_ROWS are shown, those that leaked or stayed idle before the others.
    """
    shown = tensors
    if len(tensors) > MAX_TENSOR_ROWS:
        shown = sorted(tensors, key=lambda row: row.verdict not in ("leaked", "idle"))[:MAX_TENSOR_ROWS]
    columns = [Column("tensor"), Column("kind"), Column("declared"), Column("verdict"), Column("cause")]
    columns += [Column("change (L2 norm)", True), Column("relative to the start", True)]
    rows = [
        [
            TableCell(row.name),
            TableCell(row.kind),
            TableCell("frozen" if row.frozen else "live" if row.kind == "buffer" else "trainable"),
            TableCell(row.verdict, row.verdict),
            TableCell(row.cause.replace("|", " with ")),
            *(TableCell("" if change is None else f"{change:.4g}") for change in (row.change_l2, row.change_rel)),
        ]
        for row in shown
    ]
    caption = f"Each of {counted(len(tensors), 'tensor')}: how far it moved, and why"
    return PageTable("tensors", caption + first_rows_text(len(tensors), MAX_TENSOR_ROWS), columns, rows)

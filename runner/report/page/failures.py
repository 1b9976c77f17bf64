"""What did not finish, and why."""

from __future__ import annotations

from collections.abc import Sequence

from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, first_rows_text, table_section
from runner.runs.read import Run
from runner.runs.text import counted

MAX_TABLE_ROWS = 1000


def failures_section(run_set: RunSet) -> Section | None:
    """Return the section about the runs that did not finish; None if all did."""
    return table_section("What did not finish", failures_table(run_set.runs))


def failures_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row per run that did not finish: status and reason."""
    columns = [Column("run"), Column("status"), Column("reason")]
    rows = [
        [TableCell(run.label), TableCell(run.record["status"], run.record["status"]), TableCell(run.record["reason"])]
        for run in runs
        if not run.finished
    ]
    caption = f"{counted(len(rows), 'run')} did not finish{first_rows_text(len(rows), MAX_TABLE_ROWS)}"
    return PageTable("failures", caption, columns, rows[:MAX_TABLE_ROWS])

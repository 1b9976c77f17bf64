"""What did not finish, and why: failures with the place in the user's code and the log; apart, what was skipped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from runner.contract import LOG
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import LONG, Column, PageTable, Section, TableCell, first_rows_text
from runner.runs.read import Run
from runner.runs.text import counted

MAX_TABLE_ROWS, MAX_REASONS = 1000, 10
PLACE = re.compile(r"([^:]+, line \d+): (.+)")  # begins a reason where the user's own code raised, see `error_line`


def failures_section(run_set: RunSet) -> Section | None:
    """Return the section about the runs that did not finish or were skipped; None if all finished."""
    skipped = [run for run in run_set.runs if run.state == "skipped"]
    failed = [run for run in run_set.runs if not run.finished and run.state != "skipped"]
    tables = [failures_table(run_set, failed)] if failed else []
    tables += [skipped_table(run_set, skipped)] if skipped else []
    heading = "What did not finish" if failed else "What was skipped"
    return Section("failures", heading, "failures", {"tables": tables, "reasons": reasons(failed)}) if tables else None


def reasons(failed: Sequence[Run]) -> list[str]:
    """Return a line for each reason that several runs share, the most frequent first; a reason alone stands in the table."""
    counts = Counter(run.record["reason"] for run in failed if run.record["reason"])
    repeated = [(reason, number) for reason, number in counts.most_common() if number > 1]
    lines = [f"{counted(number, 'run')}: {reason}" for reason, number in repeated[:MAX_REASONS]]
    return [*lines, f"and {len(repeated) - MAX_REASONS:,} more"] if len(repeated) > MAX_REASONS else lines


def failures_table(run_set: RunSet, failed: Sequence[Run]) -> PageTable:
    """Return a table with a row per run that failed or is not done: status, place in the user's code, reason, and log."""
    places = {run.label: found.groups() for run in failed if (found := PLACE.fullmatch(run.record["reason"]))}
    columns = ["run", "status", *(["in your code"] if places else []), "reason", "log"]
    rows = []
    for run in failed[:MAX_TABLE_ROWS]:
        place, reason = places.get(run.label, ("", run.record["reason"]))
        place_cells = [TableCell(place, "code")] if places else []
        state = TableCell(run.state, run.state)
        rows.append([_run_cell(run_set, run), state, *place_cells, TableCell(reason, LONG), _log_cell(run_set, run)])
    caption = f"{counted(len(failed), 'run')} did not finish{first_rows_text(len(failed), MAX_TABLE_ROWS)}"
    return PageTable("failures", caption, [Column(name) for name in columns], rows)


def skipped_table(run_set: RunSet, skipped: Sequence[Run]) -> PageTable:
    """Return a table with a row per run that was skipped, and why."""
    caption = f"{counted(len(skipped), 'run')} skipped: the method cannot freeze this there, which is no failure"
    rows = [[_run_cell(run_set, run), TableCell(run.record["reason"], LONG)] for run in skipped[:MAX_TABLE_ROWS]]
    cut = first_rows_text(len(skipped), MAX_TABLE_ROWS)
    return PageTable("skipped", caption + cut, [Column("run"), Column("why")], rows)


def _run_cell(run_set: RunSet, run: Run) -> TableCell:
    """Return a cell with the name of a run, which links to its folder."""
    return TableCell(run.label, link=run_set.link(run))


def _log_cell(run_set: RunSet, run: Run) -> TableCell:
    """Return a cell that links to the log of a run; empty if it has none."""
    return TableCell(LOG, link=run_set.link(run, LOG)) if (run.folder / LOG).is_file() else TableCell("")

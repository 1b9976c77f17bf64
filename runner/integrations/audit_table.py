"""What a callback prints when a training has ended: a table of the verdicts, what is wrong, and the notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from runner.contract import VERDICTS, Row
from runner.display.console import create_console, hanging
from runner.display.table import Column, number, table_lines
from runner.errors import listed
from runner.freezing.flag_changes import FlagChange, declared_at
from runner.proof.audit_report import Report

COLUMNS = (
    Column("declared"),
    Column("verdict"),
    Column("cause", rank=1, least=8),
    number("tensors"),
    number("elements", rank=2),
    Column("names", least=16),
)
MAX_NAMES = 3  # in one line of the table
MAX_NOTES = 6
MAX_PROBLEM = 400  # characters


def print_report(report: Report, problems: Sequence[str], file: str) -> None:
    """Print a report that has ended, with what is wrong. `file`: where its rows have been written; "" if nowhere."""
    console = create_console()
    console.print()  # a progress bar may end without a line break
    for line in table_lines(COLUMNS, verdict_rows(report.rows, report.flag_changes), console.width):
        console.print(line)
    print_problems(problems)
    for line in _sentences(report, not problems, file):
        for part in hanging(line, console):
            console.print(part)


def print_problems(problems: Sequence[str]) -> None:
    """Print what is wrong, a line for each problem."""
    console = create_console()
    for problem in problems:
        text = problem if len(problem) <= MAX_PROBLEM else f"{problem[: MAX_PROBLEM - 3]}..."
        for part in hanging(Text.assemble(("FreezeAudit: ", "bold red"), text), console):
            console.print(part)


def _sentences(report: Report, is_sound: bool, file: str) -> Iterator[Text]:
    """Yield the lines beneath the table and the problems."""
    if is_sound:
        yield Text.assemble(("FreezeAudit: ", "bold green"), f"{_what_held(report)}, and what is trainable was trained")
    notes = report.notes if len(report.notes) <= MAX_NOTES else report.notes[: MAX_NOTES - 1]
    for note in notes:
        yield Text.assemble(("note: ", "yellow"), note)
    if left := len(report.notes) - len(notes):
        yield Text(f"and {left} more notes: see report.notes")
    if file:
        yield Text(f"rows: {file}")


def _what_held(report: Report) -> str:
    """Return how many frozen tensors held, and of which of them that is not the whole truth."""
    frozen = [row for row in report.rows if row["frozen"]]
    returned = sum(row["verdict"] == "returned" for row in frozen)
    held = len(frozen) - returned
    in_part = sum(bool(declared_at(row, report.flag_changes)) for row in frozen)
    return (
        f"{held} frozen tensor{'s' * (held != 1)} held"
        + (f", {returned} changed and had {'its' if returned == 1 else 'their'} bits back at the end" if returned else "")
        + (f", {in_part} of them only while the flags declared them frozen" if in_part else "")
    )


def verdict_rows(rows: Sequence[Row], flag_changes: Sequence[FlagChange] = ()) -> list[tuple[str, ...]]:
    """Return the lines of the table: one for each kind of tensor, what was declared, verdict and cause, the worst first.

    `flag_changes`: what the flags declared in mid-run; what they declared frozen for a part of it has lines of its own.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        kind = "trainable" if row["kind"] == "parameter" else "live buffer"
        declared = f"frozen {declared_at(row, flag_changes)}".rstrip() if row["frozen"] else kind
        groups.setdefault((declared, row["verdict"], row["cause"]), []).append(row)
    order: list[str] = ["leaked", "idle", *VERDICTS]
    return [
        (
            *words,
            str(len(found)),
            f"{sum(row['numel'] for row in found):,}",
            listed([row["name"] for row in found], MAX_NAMES),
        )
        for words, found in sorted(groups.items(), key=lambda item: order.index(item[0][1]))
    ]

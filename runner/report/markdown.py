"""The report as Markdown, for a pull request or the summary of a CI job: the answer, the ranking, the causes, a few KB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.display.markdown import as_code, as_text, markdown_table
from runner.display.table import Cell, Column
from runner.errors import listed
from runner.report.answer.answer import answer
from runner.report.answer.findings import Findings
from runner.report.answer.learning import chance_text
from runner.report.compare.changes import change_words, not_shown
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting
from runner.report.page.leaks import BASELINE, SHOWN, Case, find_cases, size
from runner.report.page.matrix import SIGNS
from runner.report.page.render import problem_lines, subtitle
from runner.report.terminal import legend, ranking, reason_texts, shown_settings
from runner.runs.text import counted, shortened

MAX_ROWS, MAX_CASES, MAX_NAMES = 30, 10, 3  # of the ranking; causes; tensors of a cause that are named
MAX_LINES, MAX_LINE, MAX_NAME = 5, 300, 80  # lines of a kind; characters of one; of the name of a setting or a tensor
CAUSES = [Column("cause"), Column("what"), Column("most of all"), Column("what to do"), Column("option")]


def report_markdown(run_set: RunSet) -> str:
    """Return the report as Markdown: what to use, the ranking of the settings, what leaked and why, what did not finish.

    GitHub takes 65,536 characters for a comment: the text is shorter, whatever the runs are.
    """
    found, single = answer(run_set), run_set.single
    shown = shown_settings(run_set.ranked, MAX_ROWS)
    given = " ".join(" ".join(single.record["overrides"]).split()) if single else ""
    texts = [
        f"## {_line(found.headline)}",
        _line(found.sentence, 2 * MAX_LINE),
        _line(found.left),
        ranking_markdown(shown, run_set.has_accuracies),
        _line(legend(shown, len(run_set.settings), run_set.has_accuracies)),
        "" if single else _line(chance_text(run_set)),
        causes_markdown(find_cases(run_set)),
        _line(not_shown(run_set.runs, SHOWN)),
        "\n".join(item_lines(run_set, found.findings)),
        f"{_line(f'{run_set.title}, {subtitle(run_set)}')}{f', {as_code(shortened(given, MAX_LINE))}' if given else ''}",
    ]
    return "\n\n".join(filter(None, texts))


def ranking_markdown(settings: Sequence[Setting], by_accuracy: bool) -> str:
    """Return the ranking of the terminal as a table, with the sign of the page before each verdict."""
    columns, rows = ranking(settings, by_accuracy)
    signed: list[list[Cell]] = []
    for setting, (*names, verdict, runs, value, share, flops, saved) in zip(settings, rows, strict=True):
        sign = "" if setting.no_evidence else f"{SIGNS.get(setting.outcome, '?')} "
        short = [shortened(str(name), MAX_NAME) for name in names]
        signed.append([*short, f"{sign}{verdict}", runs, value, share, flops, saved])
    return markdown_table(columns, signed)


def causes_markdown(cases: Sequence[Case]) -> str:
    """Return a table of why tensors leaked or stayed idle, and what to do about it; "" if none did but by design."""
    found = sorted((case for case in cases if case.cause != BASELINE), key=lambda case: case.rank)
    rows: list[list[Cell]] = []
    for case in found[:MAX_CASES]:
        advice = next(iter(case.advice.values()))
        rows.append([case.title, case.count, listed(_tensors(case), most=MAX_NAMES), advice.fix, " ".join(advice.overrides)])
    table = markdown_table(CAUSES, rows)
    left = len(found) - MAX_CASES
    return f"{table}\n\nand {counted(left, 'more cause')}; the page has all" if left > 0 else table


def _tensors(case: Case) -> list[str]:
    """Return the names of the tensors of a case, those that moved most first, and how far each did in one of its runs."""
    largest_first = sorted(case.found.items(), key=lambda item: -size(item[1]))
    changes = [
        f" ({change_words([row for _, row in pairs])})" if case.verdict == "leaked" else "" for _, pairs in largest_first
    ]
    return [f"{shortened(name, MAX_NAME)}{change}" for (name, _), change in zip(largest_first, changes, strict=True)]


def item_lines(run_set: RunSet, findings: Findings) -> Iterator[str]:
    """Yield the items of a list: the findings of the answer, why runs did not finish, and what could not be read."""
    for heading, lines in findings:
        yield from _items(heading, lines)
    yield from _items("Not finished", [text.plain for text in reason_texts(run_set)])
    yield from _items("Could not be read", problem_lines(run_set))


def _items(heading: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield lines as items of a list; of many the first ones."""
    left = len(lines) - MAX_LINES
    for line in [*lines[:MAX_LINES], *([f"and {left:,} more; the page has all"] if left > 0 else [])]:
        yield f"- {heading}: {_line(line)}"


def _line(text: str, most: int = MAX_LINE) -> str:
    """Return a text as a line of Markdown, with at most `most` of its characters."""
    return as_text(shortened(text, most))

"""What leaked and what stayed idle: for each cause what it means, what to do about it, and the tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from runner.errors import listed
from runner.report.advice import BY_DESIGN, Advice, advice_on_idle, advice_on_leak
from runner.report.compare.changes import change_words, largest, not_shown
from runner.report.compare.costs import trains_everything
from runner.report.compare.modules import build_tree, divide
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, first_rows_text
from runner.runs.tables import TensorRow
from runner.runs.text import MAX_CELL, counted, shortened

MAX_TENSOR_ROWS, MAX_MODULE_ROWS = 20, 40  # of a cause: with more tensors, a row stands for a module
MODULE_SIZE = 20  # see `divide`
MAX_OPEN = 8  # rows of a table that is unfolded at first
BASELINE = "none, the baseline"
SHOWN = ("leaked", "idle")


@dataclass
class Case:
    """What leaked, or stayed idle, for one cause.

    Attributes:
        verdict, cause: what all its tensors have in common; the cause is BASELINE for all leaks under `method=none`.
        found: {tensor name: (setting, row) for each run in which it did}.
        runs: the labels of these runs.
        advice: {setting: the advice for it}.
    """

    verdict: str
    cause: str
    found: dict[str, list[tuple[str, TensorRow]]] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    advice: dict[str, Advice] = field(default_factory=dict)

    @property
    def what_happened(self) -> str:
        """What its tensors did, in a word: `leaked`, `idle`, or `moved` under the baseline."""
        return "moved" if self.cause == BASELINE else self.verdict

    @property
    def count(self) -> str:
        """How many of its tensors did that, such as `2 tensors leaked in 1 run`."""
        return f"{counted(len(self.found), 'tensor')} {self.what_happened} in {counted(len(self.runs), 'run')}"

    @property
    def title(self) -> str:
        """The cause in words."""
        return self.cause.replace("|", " with ")

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """A sort key: leaks first, those of the baseline after the others, those of many tensors before those of few."""
        return self.verdict != "leaked", self.cause == BASELINE, -len(self.found)


def leaks_section(run_set: RunSet) -> Section | None:
    """Return the section about what leaked and what stayed idle; None if nothing did."""
    cases = sorted(find_cases(run_set), key=lambda case: case.rank)
    verdicts = {case.verdict for case in cases} | {word for run in run_set.runs for word in run.missing if word in SHOWN}
    if not verdicts:
        return None
    data = {"cases": [_case_data(case, number) for number, case in enumerate(cases)]}
    words = {case.what_happened for case in cases} | verdicts & {word for run in run_set.runs for word in run.missing}
    return Section("leaks", _heading(words), "leaks", {**data, "not_shown": not_shown(run_set.runs, SHOWN)})


def _heading(words: Set[str]) -> str:
    """Return the heading of the section; `words`: what happened. What the baseline moved is no leak."""
    moved = "What leaked" if "leaked" in words else "What moved under the baseline"
    if "idle" not in words:
        return moved
    return f"{moved}, and what stayed idle" if len(words) > 1 else "What stayed idle"


def find_cases(run_set: RunSet) -> list[Case]:
    """Return what leaked and what stayed idle, by cause; a buffer and a parameter written in the forward pass are two."""
    cases: dict[tuple[str, ...], Case] = {}
    for setting in run_set.settings:
        for run in setting.runs:
            by_design = trains_everything(run)
            for row in run.tensors:
                if row.verdict not in SHOWN:
                    continue
                cause = BASELINE if by_design and row.verdict == "leaked" else row.cause or "unknown"
                kind = row.kind if cause == "forward_write" else ""
                case = cases.setdefault((row.verdict, cause, kind), Case(row.verdict, cause))
                case.found.setdefault(row.name, []).append((setting.name, row))
                case.runs.add(run.label)
                if setting.name not in case.advice:
                    advice = (
                        advice_on_idle(cause, run.record)
                        if row.verdict == "idle"
                        else advice_on_leak(cause, row.kind, run.record)
                    )
                    case.advice[setting.name] = BY_DESIGN if cause == BASELINE else advice
    return list(cases.values())


def _case_data(case: Case, number: int) -> dict[str, object]:
    """Return what the template needs of a case; `number` makes its ids unique."""
    advice = next(iter(case.advice.values()))
    overrides: dict[str, list[str]] = {}
    for setting, each in case.advice.items():
        for override in each.overrides:
            overrides.setdefault(override, []).append(setting)
    table = _table(case, f"leaks-{number}")
    return {
        "verdict": case.verdict,
        "is_bad": case.cause != BASELINE,
        "title": case.title,
        "count": case.count,
        "meaning": advice.meaning,
        "fix": advice.fix,
        "overrides": [
            (override, listed(names, most=4) if len(overrides) > 1 else "") for override, names in overrides.items()
        ],
        "table": table,
        "is_open": len(table.rows) <= MAX_OPEN and case.cause != BASELINE,
    }


def _table(case: Case, key: str) -> PageTable:
    """Return a table with a row for each tensor, or for each module where there are many: settings, runs, largest change."""
    groups: list[tuple[str, list[str]]] = [(name, [name]) for name in case.found]
    what = "tensor"
    if len(groups) > MAX_TENSOR_ROWS:
        groups = divide(build_tree((name, name) for name in case.found), MODULE_SIZE, MAX_MODULE_ROWS)
        groups = [(f"{name or 'the model'}: {counted(len(names), 'tensor')}", names) for name, names in groups]
        what = "module"
    lines = [(name, [pair for each in names for pair in case.found[each]]) for name, names in groups]
    lines.sort(key=lambda line: -size(line[1]))
    rows = [
        [
            TableCell(name),
            TableCell(shortened(listed(list(dict.fromkeys(setting for setting, _ in pairs)), most=4), MAX_CELL)),
            TableCell(f"{len(pairs):,}" if what == "tensor" else ""),
            TableCell(change_words([row for _, row in pairs]), sort=size(pairs)),
        ]
        for name, pairs in lines[:MAX_MODULE_ROWS]
    ]
    columns = [Column(what), Column("settings"), Column("runs", True), Column("largest relative change", True)]
    if case.verdict == "idle":
        columns, rows = columns[:3], [row[:3] for row in rows]
    if what == "module":
        columns, rows = [*columns[:2], *columns[3:]], [[*row[:2], *row[3:]] for row in rows]
    order = ", the largest change first" if case.verdict == "leaked" else ""
    kinds = {row.kind for rows in case.found.values() for _, row in rows}
    what_kind = kinds.pop() if len(kinds) == 1 else "tensor"
    what_moved = f"{case.title}: {counted(len(case.found), what_kind)} {case.what_happened}"
    return PageTable(key, f"{what_moved}{order}{first_rows_text(len(lines), MAX_MODULE_ROWS)}", columns, rows)


def size(pairs: Sequence[tuple[str, TensorRow]]) -> float:
    """Return the largest relative change, by which rows are sorted; infinity for NaN, and 0 where it is not known."""
    change = largest(row.change_rel for _, row in pairs)
    return 0.0 if change is None else math.inf if math.isnan(change) else change

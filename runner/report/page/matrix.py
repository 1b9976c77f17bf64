"""The matrix: methods down, what is frozen across; a cell says whether it held, how well it learned, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from runner.contract import DEFECTS
from runner.display.units import digits_text, percent_text
from runner.report.answer.learning import ROSE, chance_text, rose_text
from runner.report.compare.ranking import spread_text, told_apart
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting
from runner.report.page.elements import Column, PageTable, Section, TableCell, first_rows_text, outcome_cell
from runner.runs.text import MAX_CELL, counted, shortened

MAX_ROWS, MAX_COLUMNS = 1000, 48
SIGNS: dict[str, str] = {  # outcome: the sign before it, so that it is told by more than its colour
    "held": "✓",
    "leaked": "✗",
    **dict.fromkeys(DEFECTS, "!"),
    "failed": "–",
    "interrupted": "–",
    "running": "…",
    "skipped": "–",
    "finished": "?",
}


@dataclass(frozen=True)
class MatrixCell:
    """A cell of the matrix.

    Attributes:
        link: the address of the setting's runs on the page.
        kind: the CSS class of its outcome, such as `held`.
        sign, verdict: the outcome as a sign and in words, such as `✓` and `held in 3 of 3`.
        value: the accuracy on held-out data, or else the last loss, with its spread over the seeds; may be empty.
        rose: in how many runs the loss rose, such as `↑ loss rose in 2 of 3`; mostly empty.
        cost, share: the cost of a step relative to training everything, as text and as a number; "" and None if not known.
    """

    link: str
    kind: str
    sign: str
    verdict: str
    value: str
    rose: str
    cost: str
    share: float | None


def matrix_section(run_set: RunSet) -> Section | None:
    """Return the section with the matrix, and with a ranking where accuracies can be compared; None for one run."""
    if run_set.single:
        return None
    numbers = {id(setting): number for number, setting in enumerate(run_set.settings)}
    columns = list(dict.fromkeys(setting.frozen_set for setting in run_set.settings))
    rows: dict[str, dict[str, MatrixCell]] = {}
    for setting in run_set.ranked:
        name = " ".join(filter(None, (setting.method, setting.context)))
        rows.setdefault(name, {})[setting.frozen_set] = _cell(setting, numbers[id(setting)], run_set.has_accuracies)
    shown, what = columns[:MAX_COLUMNS], "accuracy on held-out data" if run_set.has_accuracies else "last training loss"
    methods = {setting.method for setting in run_set.settings}
    caption = (
        f"{counted(len(methods), 'method')} by what is frozen. Below the verdict: the {what}, as the mean ± standard "
        f"deviation over the seeds where there are several; the bar is the FLOPs of a step, of those of training everything"
        f"{first_rows_text(len(rows), MAX_ROWS)}"
    )
    if len(columns) > MAX_COLUMNS:
        caption += f"; the first {MAX_COLUMNS} of {len(columns):,} frozen sets"
    data = {
        "caption": caption,
        "chance": chance_text(run_set),
        "columns": [shortened(column, MAX_CELL) for column in shown],
        "rows": [
            (shortened(name, MAX_CELL), [cells.get(column) for column in shown])
            for name, cells in list(rows.items())[:MAX_ROWS]
        ],
        "ranking": ranking_table(run_set.ranked) if run_set.has_accuracies else None,
    }
    return Section("matrix", "Method by what is frozen", "matrix", data)


def _cell(setting: Setting, number: int, has_accuracies: bool) -> MatrixCell:
    """Return the cell of a setting; `number`: its place among the settings, which the ids of its runs have."""
    outcome, share = setting.outcome, setting.cost.get("flops_share")
    sign = SIGNS.get(outcome, "?")
    good, total = sum(run.outcome == "held" for run in setting.runs), len(setting.runs)
    kind = "bad" if outcome in DEFECTS else outcome
    if setting.no_evidence:
        sign, kind, verdict = "·", "quiet", setting.no_evidence
    elif outcome == "held" or (good and outcome != "leaked"):
        kind = "held" if outcome == "held" else "interrupted"
        verdict = "held" if total == 1 else f"held in {good} of {total}"
    else:
        same = len(setting.with_outcome)
        verdict = outcome if total == 1 else f"{outcome} in {same} of {total}"
    value = spread_text(setting.accuracies) if has_accuracies else spread_text(setting.losses)
    return MatrixCell(
        link=f"#setting-{number}",
        kind=kind,
        sign=sign,
        verdict=verdict,
        value=value if has_accuracies or not value else f"loss {value}",
        rose=f"{ROSE} {rose}" if (rose := rose_text(setting)) else "",
        cost=percent_text(share),
        share=share,
    )


def ranking_table(ranked: Sequence[Setting]) -> PageTable:
    """Return a table of the settings that have an accuracy, the most accurate first: accuracy, outcome and cost.

    The last column says whether a setting is told apart from the first: each has several seeds, and the ranges of their
    accuracies do not overlap.
    """
    with_accuracy = [each for each in ranked if each.accuracies]
    columns = [Column("setting"), Column("accuracy", True), Column("lowest", True), Column("highest", True)]
    columns += [
        Column("seeds", True),
        Column("FLOPs, of training everything", True),
        Column("worst outcome"),
        Column("against the first"),
    ]
    rows = []
    for each in with_accuracy[:MAX_ROWS]:
        values = each.accuracies
        numbers = [fmean(values), min(values), max(values)]
        apart = "" if each is with_accuracy[0] else _against(each, with_accuracy[0])
        rows.append(
            [
                TableCell(shortened(each.name, MAX_CELL)),
                *(TableCell(digits_text(number)) for number in numbers),
                TableCell(str(len(values))),
                TableCell(percent_text(each.cost.get("flops_share")), sort=each.cost.get("flops_share")),
                TableCell(each.no_evidence) if each.no_evidence else outcome_cell(each.outcome),
                TableCell(apart),
            ]
        )
    caption = (
        f"Accuracy on held-out data of {counted(len(with_accuracy), 'setting')}, the best first; what leaked comes last. "
        "Two are told apart if their ranges over the seeds are, and chance alone would do that in at most 1 of 10 cases"
    )
    return PageTable("ranking", caption + first_rows_text(len(with_accuracy), MAX_ROWS), columns, rows)


def _against(setting: Setting, first: Setting) -> str:
    """Return how a setting's accuracies compare with those of the first: `lower`, `not told apart`, or not known."""
    if min(len(setting.accuracies), len(first.accuracies)) < 2:
        return "one seed: not known"
    if not told_apart(setting.accuracies, first.accuracies):
        return "not told apart"
    return "lower" if fmean(setting.accuracies) < fmean(first.accuracies) else "higher"

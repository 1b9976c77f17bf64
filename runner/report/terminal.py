"""What the terminal shows of several runs: a ranking with a row for each setting, the answer, and where the page is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from runner.display.console import hanging, print_unbroken
from runner.display.table import Cell, Column, number, table_lines
from runner.display.units import bytes_text, flops_text, percent_text
from runner.errors import listed
from runner.report.answer.answer import answer
from runner.report.answer.findings import all_findings
from runner.report.answer.learning import ROSE, chance_text, rose_in
from runner.report.compare.ranking import spread_text
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting
from runner.runs.console import COLOURS
from runner.runs.text import MAX_CELL, counted, shortened

MAX_ROWS, MAX_FIRST = 40, 20  # of the ranking, where it is longer: in all, and of the best
MAX_REASONS, MAX_REASON = 5, 400  # how many, and characters of the one of a single run
WIDE = 100  # columns; in less, a setting of a method, a frozen set and more is named in one column


def print_report(run_set: RunSet, page: Path, console: Console, problems: Iterable[str] = ()) -> None:
    """Print the ranking of the settings, what leaked, why runs did not finish, the answer, and the full path of the page.

    `problems`: lines about what could not be read.
    """
    shown = shown_settings(run_set.ranked)
    lines = ranking_lines(shown, run_set.has_accuracies, console.width)
    explained = Text(legend(shown, len(run_set.settings), run_set.has_accuracies), style="dim")
    chance = Text("" if run_set.single else chance_text(run_set), style="dim")
    said = [text for text in (explained, chance) if text.plain]
    for text in (*said, *leak_texts(run_set), *reason_texts(run_set), *map(_unread, problems)):
        lines += hanging(text, console)
    lines += answer_lines(run_set, console)
    for line in lines:
        console.print(line)
    print_unbroken(console, f"page: {page.absolute()}")


def print_left(left: int, total: int, command: str, console: Console) -> None:
    """Print how many runs are not done, and the command that goes on, which is on a line of its own."""
    print_unbroken(console, f"{left:,} of {total:,} {'is' if left == 1 else 'are'} not done; go on with:")
    print_unbroken(console, command)


def shown_settings(ranked: Sequence[Setting], most: int = MAX_ROWS) -> list[Setting]:
    """Return the settings that get a row: of more than `most` only the first, and those that leaked or did not finish."""
    if len(ranked) <= most:
        return list(ranked)
    bad = [each for each in ranked[MAX_FIRST:] if not each.is_sound]
    return [*ranked[:MAX_FIRST], *bad[: most - MAX_FIRST]]


def ranking_lines(settings: Sequence[Setting], by_accuracy: bool, width: int) -> list[Text]:
    """Return the ranking as the lines of a table; where it is narrow, a setting is named in one column."""
    several_sets = len({each.frozen_set for each in settings}) > 1
    in_one = width < WIDE and several_sets and any(each.context for each in settings)  # three columns would not fit
    return table_lines(*ranking(settings, by_accuracy, in_one), width)


def ranking(settings: Sequence[Setting], by_accuracy: bool, in_one: bool = False) -> tuple[list[Column], list[list[Cell]]]:
    """Return (columns, rows) of a table of settings: how their runs ended, how well they learned, and what a step costs.

    `in_one`: whether one column names the setting, instead of its method, its frozen set and what else it is.
    """
    columns = [Column("method", least=14), Column("freeze", least=8), Column("setting", least=14), Column("verdict")]
    columns += [number("runs", 2), number("accuracy" if by_accuracy else "last loss"), number("cost", 1)]
    columns += [number("FLOPs", 3), number("saved", 4)]
    several_sets = len({each.frozen_set for each in settings}) > 1
    rows: list[list[Cell]] = []
    for each in settings:
        names = [each.method, each.frozen_set if several_sets else "", each.context]
        names = ["", "", each.name] if in_one else names
        verdict = Text(verdict_text(each), style="" if each.no_evidence else COLOURS.get(each.outcome, ""))
        value = " ".join(filter(None, (spread_text(each.accuracies if by_accuracy else each.losses), _rose_sign(each))))
        share, saved = percent_text(each.cost.get("flops_share")), bytes_text(each.cost.get("saved_bytes"))
        cost = [share, *(["", ""] if in_one and share else [flops_text(each.flops), saved])]  # the long name needs the place
        rows.append([*(shortened(name, MAX_CELL) for name in names), verdict, str(len(each.runs)), value, *cost])
    return columns, rows


def verdict_text(setting: Setting) -> str:
    """Return how the runs of a setting ended: `held`, or the worst end and how many ended so, such as `leaked 1/3`.

    Where that says nothing about the method, it is why, such as `baseline`.
    """
    if setting.no_evidence:
        return setting.no_evidence
    same, total = len(setting.with_outcome), len(setting.runs)
    return setting.outcome if same == total else f"{setting.outcome} {same}/{total}"


def legend(shown: Sequence[Setting], total: int, by_accuracy: bool) -> str:
    """Return what the numbers of the ranking are, and which settings it leaves out."""
    values = [each.accuracies if by_accuracy else each.losses for each in shown]
    spread = ", mean ± standard deviation over the seeds" if any(len(each) > 1 for each in values) else ""
    what = f"accuracy on held-out data{spread}" if by_accuracy else f"last training loss{spread}" if any(values) else ""
    cost = "cost: the FLOPs of a step, of those of training everything"
    texts = [what, cost if any(each.cost.get("flops_share") is not None for each in shown) else ""]
    signs = {_rose_sign(each) for each in shown} - {""}
    texts += [f"{ROSE}: the loss rose" + ("" if signs == {ROSE} else ", in how many runs")] if signs else []
    if len(shown) < total:
        others = len(shown) - MAX_FIRST
        texts.append(
            f"{len(shown)} of {counted(total, 'setting')}: the first {MAX_FIRST}"
            + (f" and {others} that leaked or did not finish" if others else "")
            + "; the page has all"
        )
    return "; ".join(filter(None, texts))


def _rose_sign(setting: Setting) -> str:
    """Return the sign of a setting whose training loss rose, with the number of runs: `↑2/3`, or `↑` for all; else ""."""
    rose, total = rose_in(setting), len(setting.finished)
    return "" if not rose else ROSE if rose == total else f"{ROSE}{rose}/{total}"


def reason_texts(run_set: RunSet) -> Iterator[Text]:
    """Yield a text for each reason why runs did not finish, such as `failed: KeyError: 'x' (2 runs: NAME and NAME)`.

    There is none for a single run, whose answer is the reason.
    """
    labels: dict[tuple[str, str], list[str]] = {}
    for run in run_set.runs if not run_set.single else ():
        if not run.finished and run.record["reason"]:
            labels.setdefault((run.state, run.record["reason"]), []).append(run.label)
    for (state, reason), names in list(labels.items())[:MAX_REASONS]:
        which = listed([shortened(name, MAX_CELL) for name in names], most=2)
        reason = shortened(reason.removeprefix(f"{state} "), MAX_CELL)
        text = f" {reason} ({f'{len(names):,} runs: ' if len(names) > 1 else ''}{which})"
        yield Text.assemble((f"{state}:", COLOURS.get(state, "yellow")), text)
    if len(labels) > MAX_REASONS:
        yield Text(f"and {len(labels) - MAX_REASONS:,} more reasons; the page has all")


def leak_texts(run_set: RunSet) -> Iterator[Text]:
    """Yield a text for each method that leaked: in how many runs, why, and with which overrides."""
    lines = dict(all_findings(run_set.methods, run_set.runs)).get("Leaked", []) if not run_set.single else []
    for line in lines[:MAX_REASONS]:
        yield Text.assemble(("leaked:", COLOURS["leaked"]), f" {line}")
    if len(lines) > MAX_REASONS:
        yield Text(f"and {len(lines) - MAX_REASONS:,} more methods that leaked; the page has all")


def _unread(problem: str) -> Text:
    """Return a problem as the text of a line."""
    return Text.assemble(("could not be read:", "yellow"), f" {problem}")


def answer_lines(run_set: RunSet, console: Console) -> list[Text]:
    """Return the answer of the report as lines: its headline, and the sentence with the evidence for it."""
    found = answer(run_set)
    headline = (found.headline, "bold red" if found.is_bad else "bold")
    failed = run_set.single and not run_set.single.finished
    sentence = shortened(found.sentence, MAX_REASON) if failed else found.sentence  # the page has all of it
    return hanging(Text.assemble(headline, ". " if sentence else "", sentence), console)

"""The phases of runs whose schedule has several: from which step to which how many tensors were frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runner.contract import PhaseRecord
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting, names_of
from runner.report.page.elements import Section, first_rows_text
from runner.runs.text import counted

MAX_ROWS = 100


class Span(NamedTuple):
    """A phase on the page: its share of the steps and the share of tensors that it freezes, in percent, and a sentence."""

    width: float
    height: float
    text: str


def phases_section(run_set: RunSet) -> Section | None:
    """Return the section about phases: which settings had which; None if no run has several."""
    settings: dict[tuple[Span, ...], list[Setting]] = {}
    for setting in run_set.settings:
        for phases in {spans(run.record["phases"]): None for run in setting.runs if len(run.record["phases"]) > 1}:
            settings.setdefault(phases, []).append(setting)
    if not settings:
        return None
    rows = [(names_of(members), phases) for phases, members in list(settings.items())[:MAX_ROWS]]
    cut = first_rows_text(len(settings), MAX_ROWS)
    caption = f"What was frozen from which step on; the height of a bar is the share of tensors{cut}"
    return Section("phases", "Phases", "phases", {"caption": caption, "rows": rows})


def spans(phases: Sequence[PhaseRecord]) -> tuple[Span, ...]:
    """Return the phases of a run as they are shown; of a bar, its height is the share of the tensors that were frozen."""
    steps = phases[-1]["last_step"] if phases else 0
    found = []
    for phase in phases:
        first, last, frozen, trained = phase["first_step"], phase["last_step"], phase["frozen"], phase["trained"]
        where = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        what = f"{counted(frozen, 'tensor')} frozen" if frozen else "nothing frozen"
        width, height = 100 * (last - first + 1) / max(steps, 1), 100 * frozen / max(frozen + trained, 1)
        found.append(Span(round(width, 2), round(height), f"{where}: {what}, {counted(trained, 'parameter')} trained"))
    return tuple(found)

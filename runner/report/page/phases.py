"""The phases of runs whose schedule has several: which blocks trained when, or how many tensors were frozen when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from runner.contract import PhaseRecord
from runner.errors import listed
from runner.report.compare.costs import trains_everything
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting, names_of
from runner.report.figures.blocks import (
    MAX_PHASES,
    BlockFigure,
    Shades,
    Timetable,
    block_figure,
    mean_phases,
    shades_for,
    timetable,
)
from runner.report.page.elements import Section, first_rows_text
from runner.runs.read import Run
from runner.runs.text import MAX_CELL, counted, shortened

MAX_ROWS = 100
MAX_FIGURES, MAX_CELLS = 12, 10_000  # of all figures together
BLOCKS_CAPTION = (
    "Which block trained when: a row is a block, from the input (top) to the head (bottom), and a cell is a phase, as wide "
    "as it has steps. Its shade is how far the block moved in that phase: the norm of its change, relative to its norm when "
    "the phase began."
)
SIGNS = {  # CSS class of a cell: (the sign in it, what it means)
    "frozen": ("", "frozen"),
    "mixed": ("", "some blocks of the row frozen, some trained"),
    "bad": ("✗", "frozen, but moved"),
    "idle": ("0", "trained, but did not move"),
    "hx": ("?", "trained; by how much is not known"),
    "unknown": ("", "not recorded"),
}


class Span(NamedTuple):
    """A phase on the page: its share of the steps and the share of tensors that it freezes, in percent, and a sentence."""

    width: float
    height: float
    text: str


def phases_section(run_set: RunSet) -> Section | None:
    """Return the section about phases: which settings had which; None if no run has several."""
    settings: dict[tuple[Span, ...], list[Setting]] = {}
    for setting in run_set.settings:
        without_blocks = [run for run in setting.runs if _has_phases(run) and not _has_blocks(run)]
        for phases in {spans(run.record["phases"]): None for run in without_blocks}:
            settings.setdefault(phases, []).append(setting)
    blocks = blocks_data(run_set)
    if not settings and not blocks["figures"]:
        return None
    rows = [(names_of(members), phases) for phases, members in list(settings.items())[:MAX_ROWS]]
    cut = first_rows_text(len(settings), MAX_ROWS)
    caption = f"What was frozen from which step on; the height of a bar is the share of tensors{cut}"
    return Section("phases", "Phases", "phases", {"caption": caption, "rows": rows, **blocks})


def blocks_data(run_set: RunSet) -> dict[str, object]:
    """Return what the template needs to draw the blocks of settings over steps; `figures` is empty if no run has blocks."""
    found = [(name, runs) for setting in run_set.ranked for name, runs in _runs_with_one_timetable(setting)]
    means = [mean_phases([run.record["phases"] for run in runs]) for _, runs in found[:MAX_FIGURES]]
    shades = shades_for(means)
    figures: list[tuple[str, BlockFigure]] = []
    cells = 0
    for (name, runs), phases in zip(found, means, strict=False):
        figure = block_figure(phases, shades, trains_everything(runs[0]))
        cells += len(figure.names) * len(figure.phases)
        if figures and cells > MAX_CELLS:
            break
        figures.append(("" if run_set.single else name, figure))
    more = f"Drawn are {len(figures)} of {len(found):,} figures, those of the settings that rank first."
    return {
        "figures": figures,
        "about": BLOCKS_CAPTION,
        "legend": _legend(shades, [figure for _, figure in figures]),
        "more": more if len(figures) < len(found) else "",
    }


def _runs_with_one_timetable(setting: Setting) -> Iterator[tuple[str, list[Run]]]:
    """Yield (name, runs) of a setting for each timetable of its runs: of the finished runs, one a seed, or else of all."""
    groups: dict[Timetable, list[Run]] = {}
    for run in setting.one_per_seed or setting.runs:
        if _has_phases(run) and _has_blocks(run):
            groups.setdefault(timetable(run.record["phases"]), []).append(run)
    for runs in groups.values():
        seeds = listed([str(run.record["seed"]) for run in runs], most=4)
        of = f", seed{'' if len(runs) == 1 else 's'} {seeds}" if len(groups) > 1 else ""
        mean = f": mean of {counted(len(runs), 'run')}" if len(runs) > 1 else ""
        yield f"{shortened(setting.name, MAX_CELL)}{of}{mean}", runs


def _legend(shades: Shades, figures: Sequence[BlockFigure]) -> list[tuple[str, str, str]]:
    """Return (CSS classes, sign, meaning) of each kind of cell in the figures."""
    kinds = {kind for figure in figures for row in figure.rows for cell in row for kind in cell.kind.split()}
    signs = [(kind, *SIGNS[kind]) for kind in SIGNS if kind in kinds]
    shown = [(kind, "", text) for kind, text in shades.legend if kind in kinds]
    shown[:1] = [(kind, sign, f"moved by {text}") for kind, sign, text in shown[:1]]
    return [*signs[: "frozen" in kinds], *shown, *signs["frozen" in kinds :]]


def _has_phases(run: Run) -> bool:
    """Return whether a run has several phases."""
    return len(run.record["phases"]) > 1


def _has_blocks(run: Run) -> bool:
    """Return whether one of the phases of a run that would be drawn has blocks."""
    return any("blocks" in phase for phase in run.record["phases"][:MAX_PHASES])


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

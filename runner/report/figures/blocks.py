"""Lay out the figure of blocks over steps: a row is a block, a cell a phase, in which the block was frozen or trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from typing import NamedTuple, TypeAlias

from runner.contract import BlockRecord, PhaseRecord
from runner.display.units import change_text, digits_text
from runner.report.figures.axis import ends_of
from runner.runs.text import counted

MAX_BLOCKS, MAX_PHASES = 40, 60  # of a figure
SHADES = 5
MAX_TEXTS = 16  # phases of a figure whose cells have a text
MAX_NAME = 22  # characters of a name beside its row
# The space that the label of a tick takes, in percent of the width of the axis: (for each character, around it).
WIDE, NARROW = (1.2, 1.5), (3.7, 3.5)  # on a desk, and on a phone

Timetable: TypeAlias = "tuple[tuple[int, int, tuple[tuple[str, bool, float], ...]], ...]"
"""For each phase its first and last step, and (name, frozen, factor) of each of its blocks."""


class BlockCell(NamedTuple):
    """A block in a phase: its CSS classes, a text of a few characters, and what happened to it in words."""

    kind: str
    text: str
    words: str


class StepTick(NamedTuple):
    """A label of the axis: where it is, in percent; its text; whether there is room for it on a phone too."""

    place: float
    text: str
    has_room: bool


@dataclass(frozen=True)
class Shades:
    """The shades for how far blocks moved: `bounds` divide the changes on a logarithmic scale.

    `least`, `most`: the ends of the scale; beyond them are changes that are far from all others.
    """

    bounds: tuple[float, ...]
    least: float
    most: float

    def of(self, change: float) -> str:
        """Return the CSS class of a change above 0, `h1` (a small one) to `h5`."""
        return self._kind(sum(change >= bound for bound in self.bounds))

    def _kind(self, place: int) -> str:
        """Return the CSS class of the shade with this number; few shades are spread over all."""
        return f"h{1 + SHADES * (2 * place + 1) // (2 * (len(self.bounds) + 1))}"

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(CSS class, the changes that have it, such as `1% to 5%`) for each shade, that of the least changes first."""
        texts = [change_text(bound) for bound in self.bounds]
        if not texts:
            ends = dict.fromkeys((change_text(self.least), change_text(self.most)))
            return [(self._kind(0), " to ".join(ends))] if self.most else []
        between = [f"{low} to {high}" for low, high in pairwise(texts)]
        ranges = [f"less than {texts[0]}", *between, f"{texts[-1]} or more"]
        return [(self._kind(place), text) for place, text in enumerate(ranges)]


@dataclass(frozen=True)
class BlockFigure:
    """A figure of blocks over steps.

    Attributes:
        names: (text beside the row, whole name) of each row, from the input to the head.
        phases: (number of steps, `steps 1 to 4`) of each phase.
        rows: the cells of each row, one for each phase.
        ticks: the labels of the axis.
        left_out: sentences about what is not drawn, or not drawn alone; mostly empty.
    """

    names: list[tuple[str, str]]
    phases: list[tuple[int, str]]
    rows: list[list[BlockCell]]
    ticks: list[StepTick]
    left_out: str


def timetable(phases: Iterable[PhaseRecord]) -> Timetable:
    """Return what of the phases of a run does not depend on how far its blocks moved."""
    return tuple(
        (
            phase["first_step"],
            phase["last_step"],
            tuple((block["name"], block["frozen"], block["factor"]) for block in phase.get("blocks", ())),
        )
        for phase in phases
    )


def mean_phases(runs: Sequence[Sequence[PhaseRecord]]) -> list[PhaseRecord]:
    """Return the phases of runs with the same timetable: of each change the mean, or None if a run does not know it."""
    found: list[PhaseRecord] = []
    for same in zip(*runs, strict=True):
        phase = same[0].copy()
        if "blocks" in phase:
            phase["blocks"] = [_mean_block(records) for records in zip(*(each["blocks"] for each in same), strict=True)]
        found.append(phase)
    return found


def _mean_block(records: Sequence[BlockRecord]) -> BlockRecord:
    """Return a block with the mean change of several runs, or None if one of them does not know it."""
    block, changes = records[0].copy(), [each["change_rel"] for each in records]
    block["change_rel"] = None if None in changes else sum((change or 0.0) / len(changes) for change in changes)
    return block


def shades_for(several: Iterable[Sequence[PhaseRecord]]) -> Shades:
    """Return the shades for figures of several runs, so that the same shade is the same change in each."""
    changes = [block["change_rel"] or 0.0 for phases in several for phase in phases for block in phase.get("blocks", ())]
    least, most = ends_of(changes)
    if not most:
        return Shades((), 0.0, 0.0)
    bounds = {float(f"{least * (most / least) ** (place / SHADES):.0e}") for place in range(1, SHADES)}
    return Shades(tuple(sorted(bound for bound in bounds if least < bound <= most)), least, most)


def block_figure(phases: Sequence[PhaseRecord], shades: Shades, by_design: bool = False) -> BlockFigure:
    """Return the figure of the phases of a run, of which one of the first MAX_PHASES at least has blocks.

    More than MAX_BLOCKS blocks are drawn in groups of neighbours; of more than MAX_PHASES phases the first ones are drawn.
    `by_design`: whether the method trains what is declared frozen, so that what moves there is no leak.
    """
    shown = phases[:MAX_PHASES]
    blocks = [{block["name"]: block for block in phase.get("blocks", ())} for phase in shown]
    names = list(dict.fromkeys(name for each in blocks for name in each))
    size = ceil(len(names) / MAX_BLOCKS)
    groups = [names[place : place + size] for place in range(0, len(names), size)]
    whole = [_name_of(group[0], group[-1]) for group in groups]
    rows = [
        [_cell([each[name] for name in group if name in each], shades, by_design) for each in blocks] for group in groups
    ]
    if len(shown) > MAX_TEXTS:
        rows = [[cell._replace(text="") for cell in row] for row in rows]
    return BlockFigure(
        names=[(_short_name(name), name) for name in whole],
        phases=[(_steps(phase), _steps_text(phase)) for phase in shown],
        rows=rows,
        ticks=_ticks(shown),
        left_out=_left_out(phases, len(names), size),
    )


def _name_of(first: str, last: str) -> str:
    """Return a name for the row of a block, or of several from `first` to `last`, such as `encoder.layers.3 to 5`."""
    parent = f"{first.rpartition('.')[0]}."
    return first if first == last else f"{first} to {last.removeprefix(parent)}"


def _short_name(name: str) -> str:
    """Return the end of a long name, which tells it from others, from one of its dotted parts on if that leaves enough."""
    if len(name) <= MAX_NAME:
        return name
    end = name[1 - MAX_NAME :]
    parts = end.partition(".")[2]
    return f"…{parts if 2 * len(parts) > MAX_NAME else end}"


def _cell(records: Sequence[BlockRecord], shades: Shades, by_design: bool) -> BlockCell:
    """Return the cell of a block in a phase, or of several neighbours; `records` is empty if nothing is known of them."""
    if not records:
        return BlockCell("unknown", "", "not recorded")
    frozen = [block for block in records if block["frozen"]]
    what = "frozen" if len(frozen) == len(records) else f"{len(frozen)} of {len(records)} frozen" if frozen else ""
    moved = max((block["change_rel"] or 0.0 for block in frozen), default=0.0)
    if moved and not by_design:
        return BlockCell("bad", f"✗{_short(moved)}", f"{what}, but moved by {change_text(moved)}")
    if what == "frozen" and not by_design:
        is_known = all(block["change_rel"] is not None for block in frozen)
        return (
            BlockCell("frozen", "", what) if is_known else BlockCell("frozen", "?", f"{what}; whether it moved is not known")
        )
    trained = records if by_design else [block for block in records if not block["frozen"]]
    kind, text, words = _movement([block["change_rel"] for block in trained], shades)
    factors = sorted({block["factor"] for block in trained})
    rates = " to ".join(dict.fromkeys(digits_text(factor, 3) for factor in (factors[0], factors[-1])))
    rate = "" if factors == [1.0] else f", at {rates} times the scheduled rate"
    if by_design and frozen:
        words = f"{what.replace('frozen', 'declared frozen')}, but trained by the method: {words}"
    elif frozen:
        kind, text, words = f"{kind} mixed", "", f"{what}, the others {words}"
    return BlockCell(kind, text, words + rate)


def _movement(changes: Sequence[float | None], shades: Shades) -> BlockCell:
    """Return the cell of blocks that trained, by their changes: the largest one decides."""
    known = [change for change in changes if change is not None]
    if len(known) < len(changes):
        return BlockCell("hx", "?", "trained; by how much is not known")
    if not max(known):
        return BlockCell("idle", "0", "trained, but did not move")
    return BlockCell(shades.of(max(known)), _short(max(known)), f"moved by {change_text(max(known))}")


def _short(change: float) -> str:
    """Return a relative change in percent, with two significant digits."""
    return change_text(float(f"{change:.2g}"))


def _steps(phase: PhaseRecord) -> int:
    """Return how many steps a phase has; 1 where its record makes no sense."""
    return max(phase["last_step"] - phase["first_step"] + 1, 1)


def _steps_text(phase: PhaseRecord) -> str:
    """Return the steps of a phase as text, such as `steps 1 to 4`."""
    first, last = phase["first_step"], phase["last_step"]
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _ticks(phases: Sequence[PhaseRecord]) -> list[StepTick]:
    """Return the labels of the axis: the first step of each phase, as far as there is room, and the last step of all."""
    starts = list(accumulate(map(_steps, phases), initial=0))
    labels = [(100 * start / starts[-1], f"{phase['first_step']:,}") for start, phase in zip(starts, phases, strict=False)]
    end = f"{phases[-1]['last_step']:,}"
    wide = _with_room(labels, end, WIDE)
    narrow = _with_room(wide, end, NARROW)
    return [*(StepTick(round(place, 2), text, (place, text) in narrow) for place, text in wide), StepTick(100.0, end, True)]


def _with_room(labels: Sequence[tuple[float, str]], end: str, room: tuple[float, float]) -> list[tuple[float, str]]:
    """Return those of the labels, pairs (place in percent, text), that are clear of each other and of `end`, at 100%.

    `room`: see WIDE.
    """
    kept, free = [], 0.0
    of_character, around = room
    for place, text in labels:
        after = place + of_character * len(text) + around
        if free <= place and after <= 100 - of_character * len(end) - around:
            kept.append((place, text))
            free = after
    return kept


def _left_out(phases: Sequence[PhaseRecord], blocks: int, size: int) -> str:
    """Return sentences about what is not drawn; `blocks`: how many there are; `size`: how many neighbours make a row."""
    texts = []
    if size > 1:
        texts.append(
            f"A row is {size} neighbours of {counted(blocks, 'block')}, with the largest change of those that trained."
        )
    if len(phases) > MAX_PHASES:
        shown, last = phases[MAX_PHASES - 1]["last_step"], phases[-1]["last_step"]
        texts.append(f"Drawn are the first {MAX_PHASES} of {len(phases):,} phases, up to step {shown:,} of {last:,}.")
    return " ".join(texts)

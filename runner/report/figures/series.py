"""Turn the values of settings into curves: mean and band over the runs; settings with the same values share a curve."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from runner.errors import listed
from runner.report.figures.axis import can_draw
from runner.report.figures.chart import Chart, Curve
from runner.report.figures.palette import method_colours, method_markers
from runner.runs.text import MAX_CELL, counted, shortened

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")  # tell apart the settings of one method
MAX_NAME = 400  # characters
MOST_NAMES = 6  # of the settings that share a curve; the others are counted


@dataclass(frozen=True)
class Figure:
    """A figure of the page: the id that its parts begin with, its name, the text below it, and its chart."""

    key: str
    name: str
    caption: str
    chart: Chart


@dataclass(frozen=True)
class Series:
    """The values of a setting along an axis.

    Attributes:
        name, method: of the setting.
        columns: (x, the values of its runs) in the order of x.
        same: equal for settings with the same values, bit by bit.
        lost: the x from which on a value is NaN or infinite; None if there is none.
    """

    name: str
    method: str
    columns: Sequence[tuple[float, Sequence[float | None]]]
    same: Hashable
    lost: float | None = None


def curves_of(series: Sequence[Series], methods: Iterable[str]) -> list[Curve]:
    """Return a curve for each different series; its name says which settings share it, and of how many runs it is.

    `methods`: the methods of all settings of the report, in their order: they get their colours.
    """
    methods = list(methods)
    colours, markers = method_colours(methods), method_markers(methods)
    sharing: dict[Hashable, list[Series]] = {}
    for each in series:
        sharing.setdefault(each.same, []).append(each)
    curves, used = [], dict.fromkeys(methods, 0)
    for members in sharing.values():
        first = members[0]
        runs = max((len(values) for _, values in first.columns), default=0)
        name = f"{shared_name(members)} ({counted(runs, 'run')})"
        dash = DASHES[used[first.method] % len(DASHES)]
        used[first.method] += 1
        points = [(x, *spread(values)) for x, values in first.columns]
        colour, marker = colours[first.method], markers[first.method]
        short = shortened(first.name, MAX_CELL)
        curves.append(Curve(name, short, colour=colour, marker=marker, dash=dash, points=points, lost=first.lost))
    return curves


def shared_name(members: Sequence[Series]) -> str:
    """Return the name of a curve that several settings share, such as `exclude and zero_lr with the same bits`.

    What stands behind the method in all their names is said once, before them: `lr=0.1: exclude and zero_lr`.
    """
    if len(members) == 1:
        return shortened(members[0].name, MAX_NAME)
    rests = {each.name.removeprefix(each.method).strip() for each in members}
    same_rest = len(rests) == 1 and all(each.name.startswith(each.method) for each in members)
    names = [shortened(each.method if same_rest else each.name, MAX_NAME) for each in members]
    lead = f"{shortened(rests.pop(), MAX_NAME)}: " if same_rest and rests != {""} else ""
    return f"{lead}{listed(names, most=MOST_NAMES)} with the same bits"


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Return (mean, least, greatest) of the values; three times None if one is missing, NaN, infinite or too large."""
    drawn = [value for value in values if value is not None and can_draw(value)]
    if not drawn or len(drawn) < len(values):
        return None, None, None
    return fmean(drawn), min(drawn), max(drawn)


def first_lost(rows: Iterable[Sequence[float | None]]) -> int | None:
    """Return the least index at which a value of some row is NaN, infinite or missing; None if there is none."""
    found = [
        next((place for place, value in enumerate(row) if value is None or not math.isfinite(value)), None) for row in rows
    ]
    return min((place for place in found if place is not None), default=None)


def lost_text(series: Sequence[Series], what: str) -> str:
    """Return a sentence that says which settings became NaN or infinite, and from which step (`what`) on; or ""."""
    lost = [f"{shortened(each.name, MAX_NAME)} from {what} {each.lost:g} on" for each in series if each.lost is not None]
    return f" NaN or infinite (marked by a cross): {listed(lost, most=6)}." if lost else ""


def band_text(series: Sequence[Series]) -> str:
    """Return a sentence that says what line and band are, if a setting has several runs; else ""."""
    if all(len(values) < 2 for each in series for _, values in each.columns):
        return ""
    return " A line is the mean over the runs of a setting, its band reaches from the least to the greatest."


def same_text(series: Sequence[Series]) -> str:
    """Return a sentence that says that settings share a curve, if some do; else ""."""
    shared = len({each.same for each in series}) < len(series)
    return " Settings with the same values, bit by bit, share a curve." if shared else ""

"""An axis of a chart: its scale, linear or logarithmic, its ticks at round numbers, and its edges for what lies far away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from runner.display.units import digits_text

MOST = 1e100  # of what is drawn; the span of an axis stays within what floats can tell
LEAST, LARGEST = 1e-300, 1e300  # magnitudes on an axis; what is smaller counts as 0, what is larger as LARGEST
TICKS = 5
FAR, LEAST_SPAN = 4, 1.0  # see `ends_of`; the span is in powers of ten
EDGE = 0.08  # of the axis, for the values beyond one end of the scale


@dataclass(frozen=True)
class Axis:
    """The scale from `low` to `high`, which are not equal; `place` maps a value to a number from 0 to 1.

    Attributes:
        low, high: the ends of the scale.
        is_log: whether the scale is logarithmic.
        ticks: (number, its text), also of the values beyond the scale that lie farthest.
        has_below, has_above: whether there are values beyond the ends of the scale; all of these lie at 0 or at 1.
    """

    low: float
    high: float
    is_log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    has_below: bool = False
    has_above: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at the lower edge, 1 at the upper edge."""
        value = _within_floats(value)
        if self.has_below and value < self.low:
            return 0.0
        if self.has_above and value > self.high:
            return 1.0
        value, low, high = map(math.log, (value, self.low, self.high)) if self.is_log else (value, self.low, self.high)
        below, above = EDGE * self.has_below, EDGE * self.has_above
        return below + (value - low) / (high - low) * (1 - below - above)

    def is_beyond(self, value: float) -> bool:
        """Return whether a value lies beyond an end of the scale, and so at the edge of the axis."""
        return (self.has_below and value < self.low) or (self.has_above and value > self.high)

    @property
    def cuts(self) -> list[float]:
        """Where the values beyond the scale are parted from it, from 0 to 1."""
        return [EDGE / 2] * self.has_below + [1 - EDGE / 2] * self.has_above


def _within_floats(value: float) -> float:
    """Return a value whose magnitude is 0 or between LEAST and LARGEST, so that sums and quotients stay finite."""
    return math.copysign(min(abs(value), LARGEST), value) if abs(value) >= LEAST else 0.0


def can_draw(value: float | None) -> bool:
    """Return whether a value is finite and within MOST."""
    return value is not None and abs(value) < MOST  # False for NaN


def axis_for(values: Sequence[float], *, log: bool = False, whole: bool = False) -> Axis:
    """Return an axis for the values, with ticks.

    `log`: a logarithmic scale; values of 0 and below lie beyond its lower end. `whole`: ticks at whole numbers only. Values
    that are far from all others lie beyond the ends of the scale (see `ends_of`).
    """
    values = [_within_floats(value) for value in values]
    least, most = ends_of(values)
    near = [value for value in values if abs(value) <= most and (not log or value >= least > 0)] or (
        [1.0] if log else [0.0, 1.0]
    )
    low, high = min(near), max(near)
    has_below, has_above = min(values, default=low) < low, max(values, default=high) > high
    edges = [min(values)] * has_below + [max(values)] * has_above if values else []
    if low == high:
        pad = max(1.0, abs(low) * 1e-6) if whole else abs(low) * 0.1 or 1.0
        low, high = (low / 2, high * 2) if log else (low - pad, high + pad)
    numbers = _log_ticks(low, high) if log else _linear_ticks(low, high, whole)
    ticks = *_labelled(numbers), *((value, digits_text(value, 2)) for value in edges)
    return Axis(low, high, log, ticks, has_below=has_below, has_above=has_above)


def ends_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest magnitude above 0 of the values, without those far from the others; else (0, 0).

    Far are those behind a gap that is more than FAR times as wide as all others together, in powers of ten, which are those
    nearest to 1: a diverged loss of 1e29 would otherwise leave a line of the losses around 2. At least two magnitudes stay.
    """
    kept = sorted({abs(value) for value in values if value})
    while len(kept) > 2:
        powers = [math.log10(value) for value in kept]
        gap, place = max((after - before, place) for place, (before, after) in enumerate(pairwise(powers), 1))
        near = slice(place) if abs(powers[place - 1]) <= abs(powers[place]) else slice(place, None)
        if len(kept[near]) < 2 or gap <= FAR * max(powers[near][-1] - powers[near][0], LEAST_SPAN):
            break
        kept = kept[near]
    return (kept[0], kept[-1]) if kept else (0.0, 0.0)


def suits_log(values: Sequence[float], factor: float) -> bool:
    """Return whether a logarithmic scale suits the values: all are above 0, and those on the scale span this factor."""
    least, most = ends_of(values)
    return bool(values) and min(values) > 0 and most > factor * least


def _labelled(numbers: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Return (number, its text) for each number."""
    return tuple((number, f"{number:,.0f}" if 1000 <= abs(number) < 1e6 else digits_text(number)) for number in numbers)


def _round_step(step: float, whole: bool) -> float:
    """Return the least of 1, 2, 5, 10, ... times a power of ten that is not below `step`; with `whole`, at least 1."""
    power: float = 10.0 ** max(-307, math.floor(math.log10(step)))
    nice = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))
    return max(1.0, nice) if whole else nice


def _linear_ticks(low: float, high: float, whole: bool) -> list[float]:
    """Return round numbers from `low` to `high`."""
    step = _round_step(high / TICKS - low / TICKS, whole)
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten from `low` to `high`, or with 2 and 5 times them where that gives few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / (TICKS + 2)))
    tens = [10.0**power for power in range(first, last + 1, every)]
    between = [10.0**power * factor for power in range(first, last + 1) for factor in (1, 2, 5)]
    found = [number for number in tens if low <= number <= high]
    return found if len(found) > 2 else [number for number in between if low <= number <= high] or [low, high]

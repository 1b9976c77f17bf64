"""An axis of a chart: its scale, linear or logarithmic, and its ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runner.display.units import digits_text

MOST = 1e100  # of what is drawn; the span of an axis stays within what floats can tell
TICKS = 5


@dataclass(frozen=True)
class Axis:
    """The scale from `low` to `high`, which are not equal; `place` maps a value to 0 (low) to 1 (high)."""

    low: float
    high: float
    is_log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1 for those on the axis."""
        value, low, high = map(math.log, (value, self.low, self.high)) if self.is_log else (value, self.low, self.high)
        return (value - low) / (high - low)


def can_draw(value: float | None) -> bool:
    """Return whether a value is finite and within MOST."""
    return value is not None and abs(value) < MOST  # False for NaN


def axis_for(values: Sequence[float], *, log: bool = False, whole: bool = False) -> Axis:
    """Return an axis that holds all values, with ticks.

    `log`: a logarithmic scale; all values are then above 0. `whole`: ticks at whole numbers only.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        low, high = (low, high) if low < high else (low / 2, high * 2)
        return Axis(low, high, True, _labelled(_log_ticks(low, high)))
    if low == high:
        pad = 1.0 if whole else abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / TICKS, whole)
    numbers = [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(low, high, False, _labelled(numbers))


def _labelled(numbers: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Return (number, its text) for each number."""
    return tuple((number, f"{number:,.0f}" if 1000 <= abs(number) < 1e6 else digits_text(number)) for number in numbers)


def _round_step(step: float, whole: bool) -> float:
    """Return the least of 1, 2, 5, 10, ... times a power of ten that is not below `step`; with `whole`, at least 1."""
    power: float = 10.0 ** math.floor(math.log10(step))
    nice = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))
    return max(1.0, nice) if whole else nice


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten from `low` to `high`, or with 2 and 5 times them where that gives few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / (TICKS + 2)))
    tens = [10.0**power for power in range(first, last + 1, every)]
    between = [10.0**power * factor for power in range(first, last + 1) for factor in (1, 2, 5)]
    found = [number for number in tens if low <= number <= high]
    return found if len(found) > 2 else [number for number in between if low <= number <= high] or [low, high]

"""Means over seeds, their spreads, and differences between two arms with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

SPREADS = 2  # by how many spreads two arms must differ to be told apart


@dataclass(frozen=True)
class Difference:
    """By how much one arm is above another, over the same seeds.

    Attributes:
        mean: the mean of the differences, one for each seed.
        spread: their standard deviation.
    """

    mean: float
    spread: float

    @property
    def is_large(self) -> bool:
        """Whether the mean is above two spreads, on either side of 0."""
        return abs(self.mean) > SPREADS * self.spread

    def __str__(self) -> str:
        """The mean and, in brackets, the spread."""
        return f"{self.mean:+.3f} ({self.spread:.3f})"


def difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Return by how much `one` is above `other`; both have a value for each seed, in the same order, two or more."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    return Difference(mean(differences), stdev(differences))


def mean_and_spread(values: Sequence[float]) -> str:
    """Return the mean of the values and their standard deviation as text, such as `0.897 (0.012)`."""
    return f"{mean(values):.3f} ({stdev(values):.3f})"


def percent_and_spread(shares: Sequence[float]) -> str:
    """Return the mean of the shares and their standard deviation in percent, such as `99.7% (0.04%)`."""
    return f"{mean(shares):.1%} ({stdev(shares):.2%})"

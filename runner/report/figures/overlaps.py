"""Find curves that lie on each other, so that they can be dashed in turn and each shows."""

from __future__ import annotations

from collections.abc import Sequence

Line = Sequence[tuple[float, float]]
"""The points of a curve at pixels, in the order of x."""

MOST_APART = 1.5  # pixels: less than the width of a line


def on_one_line(lines: Sequence[Line]) -> list[list[int]]:
    """Return the numbers of the lines in groups of those that lie on each other; a line alone is a group of its own.

    Two lines lie on each other if they are at most MOST_APART pixels apart at each x that both have, which are at least half
    of those of the shorter one.
    """
    groups: list[list[int]] = []
    for number, line in enumerate(lines):
        group = next((group for group in groups if _lies_on(line, lines[group[0]])), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def _lies_on(one: Line, other: Line) -> bool:
    """Return whether two lines lie on each other."""
    heights = dict(other)
    apart = [abs(heights[x] - y) for x, y in one if x in heights]
    return bool(apart) and 2 * len(apart) >= min(len(one), len(other)) and max(apart) <= MOST_APART

"""Lay out a chart of curves: where its lines, bands, marks and texts stand. A template writes them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from runner.report.figures.axis import Axis, axis_for, can_draw
from runner.report.figures.palette import MARKERS

WIDTH, HEIGHT = 880, 340  # pixels
LEFT, RIGHT, TOP, BOTTOM = 68, 16, 30, 42  # margins
MARKERS_OF_A_LINE = 8
FEW_POINTS = 30  # at most so many points have a marker each
LOST = "m-4,-4l8,8m0,-8l-8,8"


@dataclass(frozen=True)
class Curve:
    """A curve: the mean of runs, and the band from the least to the greatest of them.

    Attributes:
        name: its name in the legend.
        colour, marker, dash: of its line; `marker` is a key of MARKERS.
        points: (x, mean, least, greatest) in the order of x; the last three are None where a value is not finite.
        lost: the x from which on a value is NaN or infinite; None if there is none.
    """

    name: str
    colour: str
    marker: str
    dash: str
    points: list[tuple[float, float | None, float | None, float | None]]
    lost: float | None = None


@dataclass(frozen=True)
class DrawnCurve:
    """A curve as paths of SVG; each may be empty. `lost` is the mark where it became NaN or infinite."""

    curve: Curve
    line: str
    band: str
    markers: str
    lost: str


@dataclass(frozen=True)
class Chart:
    """A chart, laid out: texts and lines at pixels.

    Attributes:
        x_name, y_name: what the axes show.
        x_ticks, y_ticks: (pixel, text) of each tick.
        curves: the curves.
        width, height, left, right, top, bottom: the size of the picture, and where the plot ends in it.
    """

    x_name: str
    y_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[DrawnCurve]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    key_markers: dict[str, str] = field(default_factory=lambda: dict(MARKERS))


def lay_out(curves: Sequence[Curve], x_name: str, y_name: str, *, log_x: bool = False) -> Chart:
    """Return the chart of some curves; the scale of y is logarithmic where all values are above 0 and span a factor of 20.

    `log_x`: the scale of x is logarithmic, and each x above 0.
    """
    xs = [x for curve in curves for x, *_ in curve.points]
    ys = [value for curve in curves for _, *values in curve.points for value in values if value is not None]
    drawn = [value for value in ys if can_draw(value)]
    x_axis = axis_for(xs, log=log_x, whole=not log_x and all(x == int(x) for x in xs))
    y_axis = axis_for(drawn, log=bool(drawn) and min(drawn) > 0 and max(drawn) > 20 * min(drawn))
    return Chart(
        x_name,
        y_name,
        [(_x(x_axis, number), text) for number, text in x_axis.ticks],
        [(_y(y_axis, number), text) for number, text in y_axis.ticks],
        curves=[_drawn(curve, x_axis, y_axis) for curve in curves],
    )


def _x(axis: Axis, value: float) -> float:
    """Return the pixel of a value on the horizontal axis."""
    return round(LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    """Return the pixel of a value on the vertical axis."""
    return round(HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM), 1)


def _drawn(curve: Curve, x_axis: Axis, y_axis: Axis) -> DrawnCurve:
    """Return a curve as paths: its line and band in spans without a gap, its markers, and where it was lost."""
    lines, bands, centres = [], [], []
    for span in _spans(curve):
        pixels = [(_x(x_axis, x), _y(y_axis, mean), _y(y_axis, least), _y(y_axis, most)) for x, mean, least, most in span]
        lines.append(_path([(x, mean) for x, mean, *_ in pixels]))
        if any(least != most for *_, least, most in pixels):
            upper, lower = [(x, most) for x, *_, most in pixels], [(x, least) for x, _, least, _ in reversed(pixels)]
            bands.append(_path([*upper, *lower]) + "Z")
        centres += [(x, mean) for x, mean, *_ in pixels]
    every = 1 if len(centres) <= FEW_POINTS else math.ceil(len(centres) / MARKERS_OF_A_LINE)
    marker = MARKERS[curve.marker]
    markers = "".join(f"M{x:g},{y:g}{marker}" for x, y in centres[every // 2 :: every])
    lost = ""
    if curve.lost is not None:
        before = [y for x, y in centres if x <= _x(x_axis, curve.lost)]
        lost = f"M{_x(x_axis, curve.lost):g},{before[-1] if before else TOP + 6:g}{LOST}"
    return DrawnCurve(curve, line="".join(lines), band="".join(bands), markers=markers, lost=lost)


def _spans(curve: Curve) -> Iterator[list[tuple[float, float, float, float]]]:
    """Yield the points of a curve, cut where a value cannot be drawn."""
    span: list[tuple[float, float, float, float]] = []
    for x, mean, least, most in curve.points:
        if mean is not None and least is not None and most is not None and all(map(can_draw, (mean, least, most))):
            span.append((x, mean, least, most))
        elif span:
            yield span
            span = []
    if span:
        yield span


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return a line through the points as a path."""
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)

"""Lay out a chart of curves: where its lines, bands, marks and texts stand. A template writes them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from runner.display.units import digits_text
from runner.errors import listed
from runner.report.figures.axis import Axis, axis_for, can_draw, suits_log
from runner.report.figures.overlaps import on_one_line
from runner.report.figures.palette import MARKERS

WIDTH, HEIGHT = 880, 340  # pixels
LEFT, RIGHT, TOP, BOTTOM = 68, 28, 30, 42  # margins
MARKERS_OF_A_LINE = 8
FEW_POINTS = 30  # at most so many points have a marker each
LOST = "m-4,-4l8,8m0,-8l-8,8"
DASH = 8  # pixels: of a curve that lies on others
LOG_FACTOR = 20  # from the least to the greatest value of y: then its scale is logarithmic


@dataclass(frozen=True)
class Curve:
    """A curve: the mean of runs, and the band from the least to the greatest of them.

    Attributes:
        name, short: its name in the legend; the name of the first of its settings.
        colour, marker, dash: of its line; `marker` is a key of MARKERS.
        offset: by how many pixels its dashes begin later.
        points: (x, mean, least, greatest) in the order of x; the last three are None where a value is not finite.
        lost: the x from which on a value is NaN or infinite; None if there is none.
    """

    name: str
    short: str
    colour: str
    marker: str
    dash: str
    points: list[tuple[float, float | None, float | None, float | None]]
    lost: float | None = None
    offset: int = 0


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
        beyond: a sentence about the values that lie beyond the ends of a scale, at its edge; or "".
        x_cuts, y_cuts: the pixels of the lines that part these values from the scale.
        width, height, left, right, top, bottom: the size of the picture, and where the plot ends in it.
    """

    x_name: str
    y_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[DrawnCurve]
    beyond: str = ""
    x_cuts: Sequence[float] = ()
    y_cuts: Sequence[float] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    key_markers: dict[str, str] = field(default_factory=lambda: dict(MARKERS))


def lay_out(curves: Sequence[Curve], x_name: str, y_name: str, *, log_x: bool = False) -> Chart:
    """Return the chart of some curves; the scale of y is logarithmic where all values are above 0 and span LOG_FACTOR.

    `log_x`: the scale of x is logarithmic; each x is 0 or above.
    """
    xs = [x for curve in curves for x, *_ in curve.points]
    x_axis = axis_for(xs, log=log_x, whole=not log_x and all(x == int(x) for x in xs))
    drawn = [value for curve in curves for value in _values(curve)]
    y_axis = axis_for(drawn, log=suits_log(drawn, LOG_FACTOR))
    return Chart(
        x_name,
        y_name,
        [(_x(x_axis, number), text) for number, text in x_axis.ticks],
        [(_y(y_axis, number), text) for number, text in y_axis.ticks],
        curves=_drawn_curves(curves, x_axis, y_axis),
        beyond=_beyond(curves, {x_name: x_axis, y_name: y_axis}),
        x_cuts=[_pixel_x(place) for place in x_axis.cuts],
        y_cuts=[_pixel_y(place) for place in y_axis.cuts],
    )


def _values(curve: Curve) -> list[float]:
    """Return the values of a curve that can be drawn: means, and the ends of the band."""
    return [value for _, *values in curve.points for value in values if value is not None and can_draw(value)]


def _beyond(curves: Sequence[Curve], axes: dict[str, Axis]) -> str:
    """Return a sentence that names what lies beyond the ends of the scales of x and y, and the farthest values; or "".

    `axes`: {name: axis} of x, then of y.
    """
    (x_name, x_axis), (y_name, y_axis) = axes.items()
    xs = {x for curve in curves for x, *_ in curve.points}
    found = [f"{x_name}={digits_text(x)}" for x in sorted(xs) if x_axis.is_beyond(x)]
    for curve in curves:
        far = [value for value in _values(curve) if y_axis.is_beyond(value)]
        ends = f"{y_name} down to {digits_text(min(far))}" if far and min(far) < y_axis.low else ""
        ends += " and " if ends and max(far) > y_axis.high else ""
        ends += f"{y_name} up to {digits_text(max(far))}" if far and max(far) > y_axis.high else ""
        found += [f"{curve.short}, {ends}"] if far else []
    return f" At the edge, since it lies far beyond the scale: {listed(found, most=6)}." if found else ""


def _x(axis: Axis, value: float) -> float:
    """Return the pixel of a value on the horizontal axis."""
    return _pixel_x(axis.place(value))


def _y(axis: Axis, value: float) -> float:
    """Return the pixel of a value on the vertical axis."""
    return _pixel_y(axis.place(value))


def _pixel_x(place: float) -> float:
    """Return the pixel of a place on the horizontal axis, from 0 to 1."""
    return round(LEFT + place * (WIDTH - LEFT - RIGHT), 1)


def _pixel_y(place: float) -> float:
    """Return the pixel of a place on the vertical axis, from 0 to 1."""
    return round(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM), 1)


def _drawn_curves(curves: Sequence[Curve], x_axis: Axis, y_axis: Axis) -> list[DrawnCurve]:
    """Return the curves as paths; of those that lie on each other dashes and markers take turns, and the names say so."""
    lines = [[(_x(x_axis, x), _y(y_axis, mean)) for span in _spans(curve) for x, mean, *_ in span] for curve in curves]
    drawn: dict[int, DrawnCurve] = {}
    for group in on_one_line(lines):
        for turn, number in enumerate(group):
            curve = curves[number]
            if len(group) > 1:
                curve = replace(curve, dash=f"{DASH} {DASH * (len(group) - 1)}", offset=-DASH * turn)
            if turn:
                curve = replace(curve, name=f"{curve.name}, on the line of {curves[group[0]].short}")
            drawn[number] = _drawn(curve, x_axis, y_axis, _markers(lines[number], curve.marker, turn, len(group)))
    return [drawn[number] for number in range(len(curves))]


def _drawn(curve: Curve, x_axis: Axis, y_axis: Axis, markers: str) -> DrawnCurve:
    """Return a curve as paths: its line and band in spans without a gap, and where it was lost."""
    lines, bands, centres = [], [], []
    for span in _spans(curve):
        pixels = [(_x(x_axis, x), _y(y_axis, mean), _y(y_axis, least), _y(y_axis, most)) for x, mean, least, most in span]
        lines.append(_path([(x, mean) for x, mean, *_ in pixels]))
        if any(least != most for *_, least, most in pixels):
            upper, lower = [(x, most) for x, *_, most in pixels], [(x, least) for x, _, least, _ in reversed(pixels)]
            bands.append(_path([*upper, *lower]) + "Z")
        centres += [(x, mean) for x, mean, *_ in pixels]
    lost = ""
    if curve.lost is not None:
        before = [y for x, y in centres if x <= _x(x_axis, curve.lost)]
        lost = f"M{_x(x_axis, curve.lost):g},{before[-1] if before else TOP + 6:g}{LOST}"
    return DrawnCurve(curve, line="".join(lines), band="".join(bands), markers=markers, lost=lost)


def _markers(centres: Sequence[tuple[float, float]], marker: str, turn: int, turns: int) -> str:
    """Return the markers of a line as a path: at each of few points, else at some; of `turns` lines in one place in turn."""
    every = turns if len(centres) <= FEW_POINTS else math.ceil(len(centres) / MARKERS_OF_A_LINE)
    first = turn if len(centres) <= FEW_POINTS else every // 2 + turn * every // turns
    return "".join(f"M{x:g},{y:g}{MARKERS[marker]}" for x, y in centres[first::every])


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

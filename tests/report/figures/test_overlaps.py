"""Curves that lie on each other: they are found, and each of them shows."""

from __future__ import annotations

from runner.report.figures.chart import Curve, lay_out
from runner.report.figures.overlaps import on_one_line


def curve(name: str, *ys: float | None, dash: str = "") -> Curve:
    """A curve of one run, whose values at 1, 2, ... are `ys`."""
    points = [(float(x), y, y, y) for x, y in enumerate(ys, 1)]
    return Curve(f"{name} (1 run)", name, colour="#000000", marker="circle", dash=dash, points=points)


def test_lines_within_their_width_lie_on_each_other():
    line, near, far = [(0, 5.0), (9, 5.0)], [(0, 6.0), (9, 4.0)], [(0, 5.0), (9, 7.0)]
    assert on_one_line([line, far, near, far]) == [[0, 2], [1, 3]]


def test_a_line_that_ends_early_lies_on_the_longer_one_and_lines_without_a_common_x_on_none():
    assert on_one_line([[(0, 1.0), (1, 1.0), (2, 1.0)], [(0, 1.0)], [(7, 1.0)], []]) == [[0, 1], [2], [3]]


def test_curves_that_lie_on_each_other_are_dashed_in_turn_have_their_own_markers_and_say_so():
    first, other, second, third = lay_out(
        [curve("a", 1, 2, 3), curve("b", 3, 1, 2), curve("c", 1, 2, 3.001), curve("d", 1.001, 2, 3)], "step", "loss"
    ).curves
    assert [each.curve.dash for each in (first, second, third)] == ["8 16"] * 3
    assert [each.curve.offset for each in (first, second, third)] == [0, -8, -16]
    assert second.curve.name == "c (1 run), on the line of a"
    assert [each.markers.count("M") for each in (first, second, third)] == [1, 1, 1]
    places = {each.markers.split("m")[0] for each in (first, second, third)}
    assert len(places) == 3
    assert (other.curve.dash, other.curve.offset, other.curve.name) == ("", 0, "b (1 run)")


def test_of_long_curves_on_each_other_no_marker_hides_another():
    chart = lay_out([curve("a", *range(100)), curve("b", *range(100))], "step", "loss")
    one, other = ({part.split("m")[0] for part in each.markers.split("M")[1:]} for each in chart.curves)
    assert len(one) > 5
    assert one.isdisjoint(other)

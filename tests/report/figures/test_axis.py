"""The scale of a chart: what lies far from all else is at its edge, and all else keeps its place."""

from __future__ import annotations

import pytest

from runner.report.figures.axis import axis_for, ends_of, suits_log

RATES = [1e-5, 1e-3, 0.01, 0.1, 1.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([*RATES, 1e30], (1e-5, 1.0)),
        ([*RATES, 1e26, 1e30], (1e-5, 1.0)),
        ([1e-30, *RATES], (1e-5, 1.0)),
        ([2.3, 2.1, 3.0, 1e29, 2e29, 3e29, 4e29], (2.1, 3.0)),
        ([0.0, -2.0, 3.0, -1e29], (2.0, 3.0)),
        ([1e-5, 1.0], (1e-5, 1.0)),
        ([1e-4, 1.0, 1e4], (1e-4, 1e4)),
        ([1e-12, 1e-6, 1.0, 1e6], (1e-12, 1e6)),
        ([2.3, 8.8, 1540.0], (2.3, 1540.0)),
        ([2.0, 1e29], (2.0, 1e29)),
        ([0.0, 0.0], (0.0, 0.0)),
        ([], (0.0, 0.0)),
    ],
)
def test_the_ends_of_a_scale_leave_out_what_would_press_all_else_into_one_point(values, expected):
    assert ends_of(values) == expected


@pytest.mark.parametrize("far", [1e30, 1e-30])
def test_a_value_far_away_lies_at_the_edge_with_its_number_and_the_others_keep_nine_tenths(far):
    axis = axis_for([*RATES, far], log=True)
    edge = 1.0 if far > 1 else 0.0
    assert axis.place(far) == edge
    assert axis.is_beyond(far)
    assert axis.place(1.0) - axis.place(1e-5) == pytest.approx(0.92)
    assert axis.place(0.01) - axis.place(1e-3) == pytest.approx(0.92 / 5)
    assert (far, f"{far:.0e}") in axis.ticks
    (cut,) = axis.cuts
    assert min(edge, axis.place(1.0)) < cut < max(axis.place(1e-5), edge)


def test_without_a_value_far_away_a_scale_reaches_from_edge_to_edge():
    axis = axis_for(RATES, log=True)
    assert (axis.place(1e-5), axis.place(1.0)) == (0, 1)
    assert axis.cuts == []
    assert not any(map(axis.is_beyond, RATES))


def test_a_diverged_loss_lies_at_the_upper_edge_of_a_linear_scale_and_a_negative_one_at_the_lower():
    axis = axis_for([2.0, 2.5, 3.0, 1e29, -1e29])
    assert [axis.place(value) for value in (-1e29, 2.0, 2.5, 3.0, 1e29)] == pytest.approx([0, 0.08, 0.5, 0.92, 1])


def test_zero_lies_at_the_lower_edge_of_a_logarithmic_scale():
    axis = axis_for([0.0, 1e-4, 0.1], log=True)
    assert (axis.place(0.0), axis.place(1e-4), axis.place(0.1)) == pytest.approx((0, 0.08, 1))
    assert (0.0, "0") in axis.ticks


def test_one_value_alone_on_its_scale_is_in_the_middle_of_it():
    assert axis_for([0.1], log=True).place(0.1) == pytest.approx(0.5)
    assert axis_for([0.0, 0.1], log=True).place(0.1) == pytest.approx(0.54)
    assert axis_for([7.0]).place(7.0) == pytest.approx(0.5)


def test_a_logarithmic_scale_suits_values_above_0_that_span_a_factor_without_those_far_away():
    assert suits_log([1.0, 30.0], 20)
    assert not suits_log([1.0, 3.0, 1e29], 20)
    assert not suits_log([0.0, 1.0, 30.0], 20)
    assert not suits_log([], 20)


@pytest.mark.parametrize(
    "values", [(0.0, 5e-324, 1e-323), (-1e308, 0.0, 1e308), (5e-324, 1e308), (1.7e308, 1.7e308), (-1.7e308, 1.7e308)]
)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_the_least_and_the_largest_floats_have_an_axis(values, log, whole):
    if log and min(values) <= 0:
        values = tuple(value for value in values if value > 0) or (1.0,)
    axis = axis_for(values, log=log, whole=whole)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert len(axis.ticks) < 100

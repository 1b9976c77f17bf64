"""Numbers for people: the unit scales, nothing is rounded to 0% or 100% that is not, and the unknown is empty."""

from __future__ import annotations

import math

import pytest

from runner.display.units import bytes_text, change_text, digits_text, flops_text, percent_text, seconds_text


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0 FLOP"),
        (87, "87 FLOP"),
        (8.704e4, "87.04 kFLOP"),
        (2.295e9, "2.295 GFLOP"),
        (999_999, "1 MFLOP"),
        (3e21, "3000 EFLOP"),
    ],
)
def test_flops_are_given_in_the_unit_that_fits(flops, text):
    assert flops_text(flops) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1024, "1 KiB"), (64_980, "63.46 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**20 - 7, "1 MiB")],
)
def test_bytes_are_given_in_the_unit_that_fits(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (1e-6, "<0.1%"),
        (0.034, "3.4%"),
        (0.341, "34%"),
        (0.996, "99.6%"),
        (0.99999, ">99.9%"),
        (1, "100%"),
        (1.13, "113%"),
    ],
)
def test_a_share_is_0_or_100_percent_only_if_it_is(share, text):
    assert percent_text(share) == text


def test_a_time_is_given_in_the_unit_that_fits():
    assert [seconds_text(value) for value in (2.5e-5, 0.00125, 3.4, 0)] == ["25 µs", "1.25 ms", "3.4 s", "0 µs"]


def test_a_change_has_three_significant_digits():
    assert [change_text(value) for value in (0.3207, 4.1e-7, 0)] == ["32.1%", "4.1e-05%", "0%"]


@pytest.mark.parametrize("text_of", [bytes_text, change_text, digits_text, flops_text, percent_text, seconds_text])
def test_what_is_unknown_is_empty(text_of):
    assert text_of(None) == text_of(math.nan) == ""

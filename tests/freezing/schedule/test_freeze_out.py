"""The schedule `freeze_out`: each block anneals on a cosine of its own, and is then frozen."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product
from math import ceil, cos, pi

import pytest

from runner.errors import ConfigError
from runner.freezing.phases.factors import factor_at
from runner.freezing.schedule import freeze_out
from tests.freezing.schedule.examples import ask, timetable

# With four selected blocks, the first anneals over the share t0 of the run, the head over all of it.
LINEAR = {"0": Fraction(1, 2), "1": Fraction(5, 8), "2": Fraction(3, 4), "3": Fraction(7, 8)}


def test_the_blocks_freeze_from_the_input_up_when_their_shares_of_the_run_have_passed():
    linear = ask(freeze_out, how="linear", t0=0.5)
    assert timetable(linear) == [(1, "01234"), (51, "1234"), (64, "234"), (76, "34"), (89, "4")]
    cubic = ask(freeze_out, how="cubic", t0=0.5)
    assert timetable(cubic) == [(1, "01234"), (14, "1234"), (26, "234"), (44, "34"), (68, "4")]
    assert not linear.thaws
    assert not linear.drops_state


def test_if_everything_is_selected_the_last_block_anneals_over_the_whole_run_and_is_never_frozen():
    plan = ask(freeze_out, frozen=("0", "1", "2", "3", "4"), how="linear", t0=0.5)
    assert timetable(plan) == timetable(ask(freeze_out, how="linear", t0=0.5))
    assert factor_at(plan.phases[0].factors["4"], 51) == (1 + cos(pi / 2)) / 2


@pytest.mark.parametrize("scaled", [False, True])
def test_the_factor_is_half_a_cosine_that_ends_when_the_block_is_frozen(scaled):
    plan = ask(freeze_out, how="linear", t0=0.5, scaled=scaled)
    for name, share in LINEAR.items():
        factors = [factor_at(plan.phases[0].factors[name], step) for step in range(1, 101)]
        scale = float(share) if scaled else 1.0
        expected = [(1 + cos(pi * min((step - 1) / 100 / float(share), 1.0))) / 2 / scale for step in range(1, 101)]
        assert factors == expected
        assert factors[0] == 1 / scale
        assert all(before >= after for before, after in pairwise(factors))
        assert set(factors[ceil(share * 100) :]) == {0.0}
        assert 0.0 not in factors[: ceil(share * 100)]


def test_scaled_all_blocks_get_the_same_sum_of_rates():
    plan = ask(freeze_out, steps=10_000, how="cubic", t0=0.6)
    sums = [sum(factor_at(factor, step) for step in range(1, 10_001)) for factor in plan.phases[0].factors.values()]
    assert sums == pytest.approx([5000] * 4, rel=1e-3)


def test_a_share_that_ends_with_a_step_freezes_the_block_at_the_next_one_however_it_is_rounded():
    for t0, steps, how in product(("0.1", "0.2", "0.5", "0.7", "0.8"), (20, 50, 200), (1, 3)):
        plan = ask(freeze_out, steps=steps, how={1: "linear", 3: "cubic"}[how], t0=float(t0))
        exact = [(Fraction(t0) + (1 - Fraction(t0)) * Fraction(place, 4)) ** how for place in range(4)]
        assert [phase.first for phase in plan.phases] == sorted({1, *(ceil(share * steps) + 1 for share in exact)})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"how": "square"}, r"^schedule\.how is 'square'; give linear or cubic$"),
        ({"how": None}, r"^schedule\.how is None; give linear or cubic$"),
        ({"t0": 0}, r"^schedule\.t0 is 0; give a number above 0$"),
        ({"t0": 1}, r"^schedule\.t0 is 1, with which no block is frozen before the end; give a number below 1$"),
        ({"t0": 1.5}, r"^schedule\.t0 is 1\.5, with which no block is frozen before the end; give a number below 1$"),
        ({"t0": "0.5"}, r"^schedule\.t0 is '0\.5'; "),
        ({"state": 1}, r"^schedule\.state is 1; give keep or drop$"),
        ({"is_length_known": False}, r"^the phases divide the run, but the data have no length; give batches=N"),
        ({"frozen": ("0", "1", "2", "3", "4"), "blocks": [["*"]]}, r"no blocks were found to freeze one by one"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(freeze_out, **keys)
    assert "\n" not in str(caught.value)

"""When phases begin: steps, passes over the data, and shares of the run."""

from __future__ import annotations

import math

import pytest
from torch import nn

from runner.errors import ConfigError
from runner.freezing.phases.phase import Run
from runner.freezing.phases.spans import EXPECTED, check_choice, check_number, drops, first_steps, step_at, steps_in

RUN = Run(nn.Linear(1, 1), steps=40, steps_a_pass=8)


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (1, 1),
        (7, 7),
        (1000, 1000),
        ("1 pass", 8),
        ("3 passes", 24),
        (" 3 passes ", 24),
        (0.25, 10),
        ("25%", 10),
        ("2.5%", 1),
        (0.001, 1),
        (0.5, 20),
        (0.99, 40),
    ],
)
def test_a_value_is_a_number_of_steps_of_passes_or_a_share_of_the_run(value, steps):
    assert steps_in(value, "key", RUN) == steps


def test_a_step_is_its_own_number_and_everything_else_ends_before_it():
    assert [step_at(value, "key", RUN) for value in (1, 7, "1 pass", 0.25, "25%")] == [1, 7, 9, 11, 11]


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 1.0, 1.5, 0.0, -0.5, True, False, None, math.nan, math.inf, [7], {"a": 1}),
        *("", "7", "7 steps", "0 passes", "pass", "-1 passes", "1.5 passes", "0%", "100%", "200%", "-5%", "%", "½"),
    ],
)
def test_any_other_value_is_refused_with_what_is_expected(value):
    for function in (steps_in, step_at):
        with pytest.raises(ConfigError) as caught:
            function(value, "schedule.every", RUN)
        assert str(caught.value).startswith("schedule.every is ")
        assert str(caught.value).endswith(EXPECTED)


def test_passes_and_shares_need_a_run_of_known_length():
    run = Run(RUN.model, 100, 100, is_length_known=False)
    assert (steps_in(7, "key", run), step_at(7, "key", run)) == (7, 7)
    for value in ("1 pass", 0.25, "25%"):
        with pytest.raises(
            ConfigError, match=r"^key is .*, but the data have no length; give batches=N, .* or key as a number"
        ):
            steps_in(value, "key", run)


def test_phases_follow_one_another_or_divide_the_run_evenly():
    assert first_steps(3, 7, RUN) == [1, 8, 15]
    assert first_steps(3, "1 pass", RUN) == [1, 9, 17]
    for steps in range(1, 30):
        for count in range(1, steps + 1):
            firsts = first_steps(count, None, Run(RUN.model, steps, 1))
            lengths = [after - before for before, after in zip(firsts, [*firsts[1:], steps + 1], strict=True)]
            assert (firsts[0], len(firsts)) == (1, count)
            assert max(lengths) - min(lengths) <= 1
            assert min(lengths) >= 1


def test_a_run_with_fewer_steps_than_phases_cannot_be_divided():
    with pytest.raises(ConfigError, match=r"^schedule: the run has 1 step, too few for 2 phases; give more batches"):
        first_steps(2, None, Run(RUN.model, 1, 1))


@pytest.mark.parametrize("value", [True, None, "1", [1], math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_refused(value):
    for most in (None, 1e9):
        with pytest.raises(ConfigError, match=r"^key is .*; give a number of 0 or more"):
            check_number(value, "key", least=0, most=most)


def test_a_range_has_the_limits_that_it_says():
    assert [check_number(value, "key", least=0, most=1) for value in (0, 0.5, 1)] == [0, 0.5, 1]
    for value, exclusive in ((-1e-9, False), (1 + 1e-9, False), (0, True)):
        with pytest.raises(ConfigError, match=r"^key is .*; give a number (of 0 or more|above 0), at most 1$"):
            check_number(value, "key", least=0, most=1, exclusive=exclusive)


def test_a_word_is_one_of_the_choices():
    assert check_choice("b", "key", ("a", "b", "c")) == "b"
    with pytest.raises(ConfigError, match=r"^key is 'd'; give a, b or c$"):
        check_choice("d", "key", ("a", "b", "c"))
    assert (drops("keep"), drops("drop")) == (False, True)

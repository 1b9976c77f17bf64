"""The schedule `when_still`: freeze what hardly moves, thaw when the loss stalls."""

from __future__ import annotations

import math

import pytest

from runner.errors import ConfigError
from runner.freezing.schedule import when_still
from tests.freezing.schedule.examples import ask, timetable, trained, values

ALL = ("0", "1", "2", "3", "4")


def asked(*told: tuple[float, dict[str, float]], frozen: tuple[str, ...] = ALL[:4], **keys) -> list[str | None]:
    """Return the layers that train in the phases that begin, for each (loss, changes of some layers; 1 for the others)."""
    plan = ask(when_still, frozen=frozen, **keys)
    found = []
    for number, (loss, changes) in enumerate(told, 1):
        step = number * plan.window
        phase = plan.observe(step, values({**dict.fromkeys(plan.blocks, 1.0), **changes}, loss))
        assert phase is None or phase.first == step + 1
        found.append(phase and trained(phase))
    return found


def test_nothing_is_frozen_at_first_and_a_tenth_of_the_run_is_a_window():
    plan = ask(when_still)
    assert (timetable(plan), plan.window, plan.thaws, plan.drops_state) == ([(1, "01234")], 10, True, False)
    assert [ask(when_still, window=each).window for each in (3, "2 passes", 0.25, "5%")] == [3, 20, 25, 5]


def test_a_block_freezes_when_it_moves_less_than_the_threshold():
    assert asked((1.0, {"1": 0.01}), (0.9, {"2": 0.0099}), (0.8, {"0": 0.0, "3": 0.0})) == [None, "0134", "14"]
    assert asked((1.0, {"1": 0.2}), threshold=0.3) == ["0234"]


def test_all_blocks_thaw_when_the_loss_is_not_below_that_of_the_window_before_by_a_share():
    still = {"0": 0.0}
    assert asked((1.0, still), (0.999, {})) == ["1234", "01234"]
    assert asked((1.0, still), (0.998, {})) == ["1234", None]
    assert asked((1.0, still), (0.8, {}), stall=0.25) == ["1234", "01234"]
    assert asked((1.0, still), (math.nan, {})) == ["1234", "01234"]


def test_while_nothing_is_frozen_a_loss_that_stalls_thaws_nothing():
    assert asked((1.0, {}), (1.0, {}), (1.0, {"3": 0.0})) == [None, None, "0124"]


def test_if_everything_is_selected_the_block_that_moves_most_goes_on_training():
    nothing_moves = {"0": 0.001, "1": 0.002, "2": 0.003, "3": 0.0, "4": 0.001}
    assert asked((1.0, nothing_moves), frozen=ALL) == ["2"]
    assert asked((1.0, nothing_moves), (0.9, nothing_moves), frozen=ALL) == ["2", None]
    assert asked((1.0, {**dict.fromkeys("012", 0.001), "3": 0.0})) == ["4"]


def test_a_block_of_zeros_that_moves_is_not_still():
    plan = ask(when_still)
    told = values({"0": 0.5, "1": 1.0, "2": 1.0, "3": 1.0})
    told.weights["0"] = 0.0
    assert plan.observe(10, told) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"window": 0}, r"^schedule\.window is 0; give a number of steps"),
        ({"window": "x"}, r"^schedule\.window is 'x'; "),
        ({"threshold": 0}, r"^schedule\.threshold is 0; give a number above 0$"),
        ({"threshold": math.nan}, r"^schedule\.threshold is nan; give a number above 0$"),
        ({"threshold": "1"}, r"^schedule\.threshold is '1'; "),
        ({"stall": -1}, r"^schedule\.stall is -1; give a number of 0 or more, at most 1$"),
        ({"stall": 2}, r"^schedule\.stall is 2; give a number of 0 or more, at most 1$"),
        ({"blocks": []}, r"^schedule\.blocks is \[\]; give auto, or a list"),
        ({"state": "x"}, r"^schedule\.state is 'x'; give keep or drop$"),
        (
            {"is_length_known": False},
            r"the data have no length; give batches=N, .* or schedule\.window as a number of steps$",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(when_still, **keys)
    assert "\n" not in str(caught.value)

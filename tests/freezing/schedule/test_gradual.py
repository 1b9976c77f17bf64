"""The schedule `gradual`: from the head down, or, reversed, from the input up."""

from __future__ import annotations

import pytest

from runner.errors import ConfigError
from runner.freezing.schedule import gradual
from tests.freezing.schedule.examples import ask, timetable


def test_each_block_thaws_after_the_one_nearer_to_the_head():
    assert timetable(ask(gradual, every=7)) == [(1, "4"), (8, "34"), (15, "234"), (22, "1234"), (29, "01234")]


def test_reversed_each_block_freezes_after_the_one_nearer_to_the_input():
    plan = ask(gradual, every=7, reverse=True)
    assert timetable(plan) == [(1, "01234"), (8, "1234"), (15, "234"), (22, "34"), (29, "4")]
    assert not plan.thaws


def test_without_a_number_the_run_is_divided_evenly():
    assert [first for first, _ in timetable(ask(gradual))] == [1, 21, 41, 61, 81]
    assert [first for first, _ in timetable(ask(gradual, steps=13))] == [1, 3, 6, 8, 11]
    assert [first for first, _ in timetable(ask(gradual, steps=5))] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("every", "second"), [(3, 4), ("1 pass", 11), ("2 passes", 21), (0.1, 11), ("10%", 11), ("2.5%", 3)]
)
def test_a_phase_lasts_steps_passes_or_a_share_of_the_run(every, second):
    assert [first for first, _ in timetable(ask(gradual, every=every))] == [1 + (second - 1) * n for n in range(5)]


def test_if_everything_is_selected_the_block_nearest_to_the_head_trains_throughout():
    everything = ("0", "1", "2", "3", "4")
    assert timetable(ask(gradual, frozen=everything, every=1)) == [
        (1, "4"),
        (2, "34"),
        (3, "234"),
        (4, "1234"),
        (5, "01234"),
    ]
    assert timetable(ask(gradual, frozen=everything, every=1, reverse=True))[-1] == (5, "4")


def test_the_rate_of_a_block_is_divided_once_for_each_place_below_the_head():
    plan = ask(gradual)
    assert all(phase.factors == plan.phases[0].factors for phase in plan.phases)
    assert plan.phases[0].factors == {"3": 2.6**-1, "2": 2.6**-2, "1": 2.6**-3, "0": 2.6**-4}
    with_head = ask(gradual, frozen=("0", "1", "2", "3", "4"), rate_decay=2).phases[0].factors
    assert with_head == {"4": 1.0, "3": 0.5, "2": 0.25, "1": 0.125, "0": 0.0625}


def test_without_a_decay_all_blocks_have_the_scheduled_rate():
    assert ask(gradual, rate_decay=1).phases[0].factors == {}
    assert ask(gradual, reverse=True).phases[0].factors == {}
    assert ask(gradual, reverse=True, rate_decay=2).phases[0].factors["3"] == 0.5


def test_blocks_can_be_named_and_what_is_selected_and_in_none_stays_frozen():
    plan = ask(gradual, every=1, blocks=[["0", "1"], "2"])
    assert list(plan.blocks) == ["0+1", "2"]
    assert timetable(plan) == [(1, "4"), (2, "24"), (3, "0124")]


@pytest.mark.parametrize(("state", "drops"), [("keep", False), ("drop", True)])
def test_the_state_is_kept_or_dropped_as_the_config_says(state, drops):
    assert ask(gradual, state=state).drops_state is drops
    assert ask(gradual).drops_state is False


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"every": 0}, r"^schedule\.every is 0; give a number of steps"),
        ({"every": True}, r"^schedule\.every is True; "),
        ({"every": [1]}, r"^schedule\.every is \[1\]; "),
        ({"rate_decay": 0.5}, r"^schedule\.rate_decay is 0\.5; give a number of 1 or more$"),
        ({"rate_decay": "2"}, r"^schedule\.rate_decay is '2'; "),
        ({"state": "gone"}, r"^schedule\.state is 'gone'; give keep or drop$"),
        ({"state": None}, r"^schedule\.state is None; give keep or drop$"),
        ({"blocks": "4"}, r"^schedule\.blocks is '4'; give auto, or a list"),
        ({"blocks": ["4"]}, r"^schedule\.blocks: '4' matches nothing that freeze selects"),
        ({"steps": 4}, r"^schedule: the run has 4 steps, too few for 5 phases; give more batches"),
        ({"is_length_known": False}, r"^the phases divide the run, but the data have no length; give batches=N"),
        ({"is_length_known": False, "every": 0.5}, r"^schedule\.every is 0\.5, but the data have no length; give batches=N"),
        ({"is_length_known": False, "every": "1 pass"}, r"^schedule\.every is '1 pass', but the data have no length"),
        ({"frozen": ("0", "1", "2", "3", "4"), "blocks": [["*"]]}, r"no blocks were found to freeze one by one"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(gradual, **keys)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_steps_need_no_data_of_known_length():
    assert timetable(ask(gradual, every=3, is_length_known=False))[1][0] == 4

"""The schedule `block_coordinate`: a few blocks at a time."""

from __future__ import annotations

from itertools import islice

import pytest

from runner.errors import ConfigError
from runner.freezing.schedule import block_coordinate
from tests.freezing.schedule.examples import ask, timetable, trained, values


def blocks_in(phases: list[tuple[int, str]]) -> list[str]:
    """Return the layers that train in each phase, without the head."""
    assert all(layers.endswith("4") for _, layers in phases)
    return [layers.removesuffix("4") for _, layers in phases]


def test_without_a_number_each_block_trains_once():
    assert timetable(ask(block_coordinate)) == [(1, "04"), (26, "14"), (51, "24"), (76, "34")]
    assert timetable(ask(block_coordinate, at_once=2)) == [(1, "014"), (51, "234")]
    assert timetable(ask(block_coordinate, at_once=3)) == [(1, "0124"), (51, "0134")]


def test_the_blocks_train_in_turn_to_the_end_of_the_run():
    plan = ask(block_coordinate, steps=20, every=3)
    assert timetable(plan) == [(1, "04"), (4, "14"), (7, "24"), (10, "34"), (13, "04"), (16, "14"), (19, "24")]
    assert plan.thaws
    assert blocks_in(timetable(ask(block_coordinate, steps=8, every=1, at_once=3))) == [
        *("012", "013", "023", "123", "012", "013", "023", "123")
    ]


def test_if_everything_is_selected_nothing_trains_throughout():
    plan = ask(block_coordinate, frozen=("0", "1", "2", "3", "4"))
    assert timetable(plan) == [(1, "0"), (21, "1"), (41, "2"), (61, "3"), (81, "4")]


def test_what_is_selected_and_in_no_block_trains_throughout():
    assert timetable(ask(block_coordinate, blocks=["0", ["1", "2"]])) == [(1, "034"), (51, "1234")]


def test_random_order_trains_each_block_once_a_cycle_and_follows_the_seed():
    orders = set()
    for seed in range(10):
        one, other = (blocks_in(timetable(ask(block_coordinate, every=2, by="random", seed=seed))) for _ in range(2))
        assert one == other
        cycles = [one[start : start + 4] for start in range(0, 48, 4)]
        assert all(sorted(cycle) == ["0", "1", "2", "3"] for cycle in cycles)
        assert len({tuple(cycle) for cycle in cycles}) > 1
        orders.add(tuple(one))
    assert len(orders) == 10


@pytest.mark.parametrize("at_once", [2, 3])
@pytest.mark.parametrize("by", ["cyclic", "random"])
def test_several_blocks_at_once_are_different_ones(by, at_once):
    for seed in range(5):
        turns = blocks_in(timetable(ask(block_coordinate, every=1, at_once=at_once, by=by, seed=seed)))
        assert all(len(set(turn)) == at_once for turn in turns)
        first = list(islice(dict.fromkeys("".join(turns[: -(-4 // at_once)])), None))
        assert sorted(first) == ["0", "1", "2", "3"]


def test_only_the_blocks_that_train_have_state_unless_the_config_says_keep():
    assert ask(block_coordinate).drops_state
    assert not ask(block_coordinate, state="keep").drops_state


def test_by_gradient_norm_each_block_trains_once_and_then_the_one_with_the_largest_gradient():
    plan = ask(block_coordinate, by="gradient_norm", every=5)
    assert (timetable(plan), plan.window) == ([(1, "04")], 5)
    found = [plan.observe(5 * n, values({}, gradients=norms)) for n, norms in enumerate(
        [{"0": 2.0}, {"1": 9.0}, {"2": 3.0}, {"3": 1.0}, {"1": 8.0}, {"1": 2.5}, {"2": 0.5}], 1
    )]  # fmt: skip
    assert [phase and trained(phase) for phase in found] == ["14", "24", "34", "14", None, "24", "14"]
    assert [phase and phase.first for phase in found] == [6, 11, 16, 21, None, 31, 36]


def test_the_gradients_of_frozen_blocks_do_not_count_because_methods_differ_in_them():
    plain, other = (ask(block_coordinate, by="gradient_norm", every=5).observe for _ in range(2))
    for n, (name, norm) in enumerate([("0", 2.0), ("1", 9.0), ("2", 3.0), ("3", 1.0), ("1", 1.0), ("2", 0.5)], 1):
        of_frozen = dict.fromkeys("0123", 0.0 if n % 2 else 1e9)
        one, two = (
            plain(5 * n, values({}, gradients={name: norm})),
            other(5 * n, values({}, gradients={**of_frozen, name: norm})),
        )
        assert (one and trained(one)) == (two and trained(two))


def test_a_block_that_the_loss_does_not_depend_on_is_ranked_last():
    observe = ask(block_coordinate, by="gradient_norm", every=5).observe
    found = [
        observe(5 * n, values({}, gradients=norms)) for n, norms in enumerate([{}, {"1": 1.0}, {"2": 2.0}, {"3": 1.5}], 1)
    ]
    assert [trained(phase) for phase in found] == ["14", "24", "34", "24"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"at_once": 0}, r"^schedule\.at_once is 0, of 4 blocks; give a number of 1 or more, at most 3$"),
        ({"at_once": 4}, r"^schedule\.at_once is 4, of 4 blocks; "),
        ({"at_once": True}, r"^schedule\.at_once is True, "),
        ({"at_once": 1.5}, r"^schedule\.at_once is 1\.5, "),
        ({"blocks": ["0"]}, r"^schedule\.at_once is 1, of 1 blocks; .* let freeze select more than one block$"),
        ({"by": "magic"}, r"^schedule\.by is 'magic'; give cyclic, random or gradient_norm$"),
        ({"by": ["cyclic"]}, r"^schedule\.by is \['cyclic'\]; "),
        ({"every": 100}, r"^schedule\.every is 100: the first of 4 blocks would train in all 100 steps$"),
        ({"every": "10 passes"}, r"^schedule\.every is '10 passes': the first of 4 blocks"),
        ({"every": 100, "by": "gradient_norm"}, r"^schedule\.every is 100: the first of 4 blocks"),
        ({"every": "x"}, r"^schedule\.every is 'x'; give a number of steps"),
        ({"state": False}, r"^schedule\.state is False; give keep or drop$"),
        ({"steps": 3}, r"^schedule: the run has 3 steps, too few for 4 phases"),
        ({"steps": 3, "by": "gradient_norm"}, r"^schedule: the run has 3 steps, too few for 4 phases"),
        ({"is_length_known": False}, r"^the phases divide the run, but the data have no length; give batches=N"),
        ({"is_length_known": False, "by": "gradient_norm"}, r"^the phases divide the run, but the data have no length"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(block_coordinate, **keys)
    assert "\n" not in str(caught.value)

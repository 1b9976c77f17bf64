"""The schedule `linear_probe_then_finetune`: what is not selected trains alone, then everything does."""

from __future__ import annotations

import pytest

from runner.errors import ConfigError
from runner.freezing.schedule import linear_probe_then_finetune as schedule
from tests.freezing.schedule.examples import ask, timetable


def test_the_head_trains_alone_for_half_of_the_run_and_then_everything_does():
    plan = ask(schedule)
    assert timetable(plan) == [(1, "4"), (51, "01234")]
    assert plan.thaws
    assert not plan.drops_state
    assert timetable(ask(schedule, steps=5)) == [(1, "4"), (3, "01234")]


@pytest.mark.parametrize(("every", "second"), [(3, 4), ("1 pass", 11), (0.25, 26), ("90%", 91)])
def test_the_probe_lasts_steps_passes_or_a_share_of_the_run(every, second):
    assert [first for first, _ in timetable(ask(schedule, every=every))] == [1, second]


def test_all_parameters_have_the_factor_in_the_second_phase_alone():
    plan = ask(schedule, factor=0.5)
    assert [dict(phase.factors) for phase in plan.phases] == [{}, dict.fromkeys(plan.blocks, 0.5)]
    names = [name for block in plan.blocks.values() for name in block]
    assert sorted(names) == sorted(f"{layer}.{kind}" for layer in "01234" for kind in ("weight", "bias"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"factor": -0.1}, r"^schedule\.factor is -0\.1; give a number of 0 or more$"),
        ({"factor": True}, r"^schedule\.factor is True; "),
        ({"factor": None}, r"^schedule\.factor is None; "),
        ({"factor": float("inf")}, r"^schedule\.factor is inf; "),
        ({"state": "x"}, r"^schedule\.state is 'x'; give keep or drop$"),
        ({"steps": 1}, r"^schedule: the run has 1 step, too few for 2 phases"),
        ({"frozen": ("0", "1", "2", "3", "4")}, r"freeze selects every parameter, .* give freeze=backbone$"),
        ({"is_length_known": False}, r"the data have no length; give batches=N"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(schedule, **keys)
    assert "\n" not in str(caught.value)

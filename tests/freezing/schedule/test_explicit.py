"""The schedule `explicit`: a list in the config says what changes at which step."""

from __future__ import annotations

import pytest
from torch import nn

from runner.errors import ConfigError
from runner.freezing.phases.phase import Run
from runner.freezing.schedule import explicit
from runner.freezing.selection import select
from runner.training.models import MLP
from tests.freezing.schedule.examples import ask, timetable

ALL = ("0", "1", "2", "3", "4")


def phases_of(*items: dict, **keys) -> list[tuple[int, str]]:
    """Return (first step, layers that train) of each phase of a list."""
    return timetable(ask(explicit, phases=list(items), **keys))


def test_what_is_selected_is_frozen_at_first_and_each_item_freezes_or_thaws_from_its_step_on():
    items = {"at": 5, "thaw": ["3"]}, {"at": 9, "thaw": ["2"], "freeze": ["3"]}, {"at": 20, "thaw": ["0", "1", "3"]}
    assert phases_of(*items) == [(1, "4"), (5, "34"), (9, "24"), (20, "01234")]


def test_items_are_taken_by_their_steps_and_those_of_one_step_begin_one_phase():
    items = {"at": 9, "thaw": ["0"]}, {"at": 5, "thaw": ["3"]}, {"at": 9, "thaw": ["1"]}, {"at": 9, "freeze": ["3"]}
    assert phases_of(*items) == [(1, "4"), (5, "34"), (9, "014")]


def test_an_item_at_step_1_changes_the_first_phase():
    assert phases_of({"at": 1, "thaw": ["3"]}, frozen=ALL) == [(1, "3")]
    assert ask(explicit, phases=[{"at": 1, "thaw": ["3"]}]).thaws is False


@pytest.mark.parametrize(("at", "first"), [(3, 3), ("1 pass", 11), ("2 passes", 21), (0.5, 51), ("25%", 26), (100, 100)])
def test_a_step_is_a_number_or_follows_passes_or_a_share_of_the_run(at, first):
    assert phases_of({"at": at, "thaw": ["*"]}) == [(1, "4"), (first, "01234")]


def test_factors_hold_from_their_step_on_until_another_is_given():
    items = [{"at": 5, "factors": {"3": 0.5, "4": 2}}, {"at": 9, "thaw": ["3"]}, {"at": 20, "factors": {"4": 1}}]
    plan = ask(explicit, phases=items)
    block = {names[0].partition(".")[0]: block for block, names in plan.blocks.items()}
    assert [phase.first for phase in plan.phases] == [1, 5, 9, 20]
    assert [{name: phase.factors.get(block[name], 1.0) for name in "34"} for phase in plan.phases] == [
        {"3": 1.0, "4": 1.0},
        {"3": 0.5, "4": 2.0},
        {"3": 0.5, "4": 2.0},
        {"3": 0.5, "4": 1.0},
    ]


def test_a_later_pattern_of_an_item_gives_the_factor_where_two_match():
    plan = ask(explicit, phases=[{"at": 5, "factors": {"**": 0.5, "4.bias": 2}}])
    of = {name: plan.phases[1].factors[block] for block, names in plan.blocks.items() for name in names}
    assert of == {**dict.fromkeys((f"{n}.{kind}" for n in ALL for kind in ("weight", "bias")), 0.5), "4.bias": 2.0}


def test_a_block_has_the_parameters_that_are_always_frozen_together_and_have_the_same_factor():
    items = [{"at": 5, "thaw": ["2", "3"]}, {"at": 9, "thaw": ["1.bias"], "factors": {"3": 0.5}}]
    assert ask(explicit, phases=items).blocks == {
        "0..1.weight": ("0.weight", "0.bias", "1.weight"),
        "1.bias": ("1.bias",),
        "2": ("2.weight", "2.bias"),
        "3": ("3.weight", "3.bias"),
    }


def test_a_tied_parameter_is_thawed_by_each_of_its_names():
    model = MLP([4])
    for name in ("there.weight", "back.weight"):
        plan = explicit(select(model, ["there", "back"]), Run(model, 10, 10), [{"at": 5, "thaw": [name]}])
        assert set(plan.phases[1].selection.parameters) == {"there.bias", "back.bias"}


@pytest.mark.parametrize(("state", "drops"), [("keep", False), ("drop", True)])
def test_the_state_is_kept_or_dropped_as_the_config_says(state, drops):
    assert ask(explicit, phases=[{"at": 5, "thaw": ["3"]}], state=state).drops_state is drops


def test_a_module_stays_in_eval_mode_while_all_its_parameters_are_frozen():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 2))
    items = [{"at": 3, "thaw": ["0.0"]}, {"at": 6, "thaw": ["0.1"]}, {"at": 8, "freeze": ["0.1"]}]
    plan = explicit(select(model, ["0"], buffers="frozen"), Run(model, 10, 10), items)
    assert [set(phase.selection.modules) for phase in plan.phases] == [{"0", "0.0", "0.1"}, {"0.1"}, set(), {"0.1"}]
    assert [len(phase.selection.buffers) for phase in plan.phases] == [3, 3, 0, 3]


REFUSED = {
    "none": ([], r"^schedule\.phases is \[\]; give a list of items such as \{at: 100, thaw: \[layer4\]"),
    "no list": ({"at": 5, "thaw": ["3"]}, r"^schedule\.phases is \{'at': 5"),
    "a number": (3, r"^schedule\.phases is 3; give a list"),
    "no mapping": ([3], r"^schedule\.phases\[0\] is 3; give a step and what changes there"),
    "no step": ([{"thaw": ["3"]}], r"^schedule\.phases\[0\] is \{'thaw': \['3'\]\}; give a step"),
    "no change": ([{"at": 5}], r"^schedule\.phases\[0\] is \{'at': 5\}; give a step and what changes there"),
    "a key": ([{"at": 5, "tahw": ["3"]}], r"^schedule\.phases\[0\]\.tahw: no such key; did you mean thaw\?"),
    "step 0": ([{"at": 0, "thaw": ["3"]}], r"^schedule\.phases\[0\]\.at is 0; give a number of steps"),
    "step true": ([{"at": True, "thaw": ["3"]}], r"^schedule\.phases\[0\]\.at is True; "),
    "step none": ([{"at": None, "thaw": ["3"]}], r"^schedule\.phases\[0\]\.at is None; "),
    "too late": ([{"at": 101, "thaw": ["3"]}], r"^schedule\.phases\[0\]\.at is 101: step 101, after the last step 100 "),
    "too late, passes": ([{"at": "10 passes", "thaw": ["3"]}], r"at is '10 passes': step 101, after the last step 100"),
    "nothing named": ([{"at": 5, "thaw": ["nope"]}], r"^schedule\.phases\[0\]\.thaw: 'nope' matches no parameter"),
    "not selected": ([{"at": 5, "thaw": ["4"]}], r"^schedule\.phases\[0\]\.thaw: '4' matches nothing that freeze selects; "),
    "one not selected": ([{"at": 5, "thaw": ["3", "4"]}], r"\.thaw: '4' matches nothing that freeze selects"),
    "not selected, frozen": ([{"at": 5, "freeze": ["4"]}], r"\.freeze: '4' matches nothing that freeze selects"),
    "empty": ([{"at": 5, "thaw": []}], r"^schedule\.phases\[0\]\.thaw is \[\]; give a list of patterns$"),
    "no patterns": ([{"at": 5, "freeze": 3}], r"^schedule\.phases\[0\]\.freeze is 3; give a list of patterns$"),
    "no pattern": ([{"at": 5, "thaw": [3]}], r"^schedule\.phases\[0\]\.thaw: 3 is not a pattern"),
    "thawed twice": (
        [{"at": 5, "thaw": ["3"]}, {"at": 6, "thaw": ["3"]}],
        r"^schedule\.phases\[1\]\.thaw: \['3'\] is not frozen at step 6, so it cannot be thawed; remove it$",
    ),
    "frozen twice": (
        [{"at": 5, "freeze": ["3"]}],
        r"^schedule\.phases\[0\]\.freeze: \['3'\] is frozen at step 5 already; remove it$",
    ),
    "factor below 0": (
        [{"at": 5, "factors": {"3": -0.5}}],
        r"^schedule\.phases\[0\]\.factors\.3 is -0\.5; give a number of 0",
    ),
    "no factor": ([{"at": 5, "factors": {"3": "x"}}], r"^schedule\.phases\[0\]\.factors\.3 is 'x'; give a number"),
    "factors empty": ([{"at": 5, "factors": {}}], r"^schedule\.phases\[0\]\.factors is \{\}; give \{pattern: factor\}$"),
    "factors listed": ([{"at": 5, "factors": ["3"]}], r"^schedule\.phases\[0\]\.factors is \['3'\]; give"),
    "factor of nothing": ([{"at": 5, "factors": {"nope": 1}}], r"^schedule\.phases\[0\]\.factors: 'nope' matches no"),
    "factor of a number": ([{"at": 5, "factors": {3: 1}}], r"^schedule\.phases\[0\]\.factors: 3 is not a pattern"),
}


@pytest.mark.parametrize(("phases", "message"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_do_is_refused_in_one_line(phases, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ask(explicit, phases=phases)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_list_that_freezes_every_parameter_at_some_step_is_refused():
    with pytest.raises(
        ConfigError, match=r"every parameter would be frozen from step 1 on; freeze selects them all: thaw some"
    ):
        ask(explicit, phases=[{"at": 2, "thaw": ["3"]}], frozen=ALL)
    with pytest.raises(ConfigError, match=r"every parameter would be frozen from step 7 on; leave some to train$"):
        ask(explicit, phases=[{"at": 1, "thaw": ["3"]}, {"at": 7, "freeze": ["3"]}], frozen=ALL)
    ask(explicit, phases=[{"at": 1, "thaw": ["3"]}, {"at": 7, "freeze": ["3"], "thaw": ["2"]}], frozen=ALL)


@pytest.mark.parametrize("at", ["1 pass", 0.5, "50%"])
def test_a_share_or_a_pass_needs_data_of_known_length_and_a_step_does_not(at):
    with pytest.raises(ConfigError, match=r"^schedule\.phases\[0\]\.at is .*, but the data have no length; give batches=N"):
        ask(explicit, phases=[{"at": at, "thaw": ["3"]}], is_length_known=False)
    assert phases_of({"at": 7, "thaw": ["3"]}, is_length_known=False)[1] == (7, "34")

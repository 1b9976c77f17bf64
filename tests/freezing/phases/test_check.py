"""What a schedule returns is checked before a run trains, and what it returns in a run when it does."""

from __future__ import annotations

import pytest

from runner.errors import ConfigError, SkippedError
from runner.freezing.phases.check import check_phase, check_plan
from runner.freezing.phases.phase import Phase, Plan, Run
from runner.freezing.selection import Selection, nothing_of, select
from tests.freezing.schedule.examples import net
from tests.in_memory import run_experiment

MODEL = net()
SELECTED = select(MODEL, ["0", "1"])
NOTHING = nothing_of(SELECTED)
WHOLE = Phase(1, SELECTED)


def checked(plan: Plan, selection: Selection = SELECTED) -> None:
    """Check a plan for a run of ten steps."""
    check_plan(plan, Run(MODEL, 10, 5), selection)


@pytest.mark.parametrize(
    "plan",
    [
        Plan([WHOLE]),
        Plan([Phase(1, NOTHING), Phase(9, SELECTED)], {"a": ("0.weight",), "b": ("0.bias", "4.weight")}),
        Plan(
            [Phase(1, SELECTED, factors={"a": 0.0}), Phase(2, NOTHING, factors={"a": lambda step: 2.0})], {"a": ["1.bias"]}
        ),
        Plan([Phase(1, NOTHING)], window=9, observe=lambda step, values: None),
    ],
)
def test_a_plan_that_can_be_carried_out_is_accepted(plan):
    checked(plan)


def test_a_schedule_may_freeze_nothing_if_nothing_is_selected():
    checked(Plan([Phase(1, NOTHING)]), NOTHING)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan([WHOLE], {"a": ["nope"]}), r"a Plan in which 'nope' is in a block, and is no parameter of the model$"),
        (Plan([WHOLE], {"a": ["0.bias"], "b": ["0.bias"]}), r"a Plan in which '0.bias' is in two blocks$"),
        (Plan([WHOLE], {"a": ["0.bias", "0.bias"]}), r"a Plan in which '0.bias' is in two blocks$"),
        (Plan([Phase(1, select(MODEL, ["2.bias"]))]), r"the phase at step 1 freezes 2.bias, which freeze does not select$"),
        (Plan([Phase(1, select(net(), ["0"]))]), r"the phase at step 1 freezes 0.weight, which freeze does not select$"),
        (Plan([Phase(1, SELECTED, factors={"a": 1.0})]), r"the phase at step 1 has a factor for a, which is no block$"),
        *(
            (
                Plan([Phase(1, SELECTED, factors={"a": factor})], {"a": ["0.bias"]}),
                r"the factor of a is .*; give a number of 0 or more$",
            )
            for factor in (-0.1, float("nan"), float("inf"), True, None, "1")
        ),
        *(
            (
                Plan([WHOLE], window=window, observe=lambda step, values: None),
                r"decides every .* steps what is frozen, but the run has 10; ",
            )
            for window in (0, -1, 10, 11, 1.0, True, None)
        ),
        (
            Plan([Phase(1, NOTHING), Phase(4, NOTHING)]),
            r"nothing would be frozen in the 10 steps of the run; give more batches$",
        ),
    ],
)
def test_a_plan_that_cannot_is_refused_in_one_line(plan, message):
    with pytest.raises(ConfigError, match=message) as caught:
        checked(plan)
    assert "\n" not in str(caught.value)


def test_what_is_no_phase_is_refused_with_its_type():
    with pytest.raises(ConfigError, match=r"^schedule: observe returned a dict; it must return a Phase, or None$"):
        check_phase({}, Plan([WHOLE]), SELECTED)


def freezes_the_head(selection: Selection, run: Run) -> list[Phase]:
    """Return the phases of a custom schedule that freezes what is not selected."""
    return [Phase(1, nothing_of(selection)), Phase(2, select(run.model, ["head"]))]


def decides_never(selection: Selection, run: Run) -> Plan:
    """Return the plan of a custom schedule that forgets its window."""
    return Plan([Phase(1, selection)], observe=lambda step, values: None)


def thaws_without_blocks(selection: Selection) -> list[Phase]:
    """Return the phases of a custom schedule that thaws, and has no blocks."""
    return [Phase(1, selection), Phase(2, nothing_of(selection))]


def lbfgs(groups: list) -> object:
    """Build LBFGS in a function of one's own."""
    from torch.optim import LBFGS

    return LBFGS(groups)


def here(function: object) -> str:
    """Return the node of a config that calls a function of this module."""
    return f"{{_target_: {__name__}.{function.__name__}}}"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (freezes_the_head, r"^schedule: the phase at step 2 freezes head.weight, which freeze does not select$"),
        (decides_never, r"^schedule decides every 0 steps what is frozen, but the run has 4; "),
    ],
)
def test_a_run_with_a_bad_plan_is_refused_before_it_trains(schedule, message):
    steps = []
    with pytest.raises(ConfigError, match=message):
        run_experiment("freeze=backbone", "batches=4", f"schedule={here(schedule)}", on_step=steps.append)
    assert steps == []


THAW = "LBFGS cannot train parameters that were frozen in mid-run: its step direction is built from earlier steps of a fixed"
BLOCKS = "LBFGS takes one parameter group, and each block of the schedule needs its own"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["schedule=gradual"], THAW),
        (["schedule=linear_probe_then_finetune"], THAW),
        (["schedule=block_coordinate"], THAW),
        (["schedule=when_still"], THAW),
        (["schedule=explicit", "schedule.phases=[{at: 2, thaw: [body]}]"], THAW),
        ([f"schedule={here(thaws_without_blocks)}"], THAW),
        ([f"schedule={here(thaws_without_blocks)}", f"optimizer={here(lbfgs)}"], THAW),
        ([f"schedule={here(thaws_without_blocks)}", "optimizer={_target_: torch.optim.LBFGS}"], THAW),
        (["schedule=freeze_out"], BLOCKS),
        (["schedule=gradual", "schedule.reverse=true"], BLOCKS),
    ],
)
@pytest.mark.parametrize("groups", ["one", "role"])
def test_under_lbfgs_what_thaws_or_has_blocks_is_skipped_with_the_reason(overrides, reason, groups):
    steps = []
    if f"optimizer={here(lbfgs)}" in overrides and groups == "role":
        return  # it is built before anything is known of it, and torch refuses the groups
    with pytest.raises(SkippedError) as caught:
        run_experiment(
            "optimizer=lbfgs", f"groups={groups}", "freeze=backbone", "batches=8", *overrides, on_step=steps.append
        )
    assert str(caught.value).startswith(reason)
    assert steps == []

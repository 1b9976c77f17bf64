"""What would save more: measured where the report has it, and never claimed where it has not."""

from __future__ import annotations

from typing import get_args

import pytest

from runner.config.check import check
from runner.config.compose import compose_config
from runner.contract import WhySmall
from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.compare.savings import NOT_MEASURED
from runner.report.compare.savings import opportunities as all_opportunities
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import LEAKED_ROWS, change_row, write_run

COMPUTED, LITTLE, AT_END, BETWEEN, FROM_INPUT = get_args(WhySmall)
ROWS = [change_row(f"{name}.weight", "trained", 0.1) for name in ("stem", "one", "two", "head")]
HEAD_FROZEN = [*ROWS[:3], change_row("head.weight", "held")]
BODY_FROZEN = [*(change_row(row["name"], "held") for row in ROWS[:3]), ROWS[3]]


def costs(share: float, why: str = "", **others):
    backward = 200 * share
    return {"flops_forward": 100 * share, "flops_backward": backward, "flops_share": share, "why_small": why, **others}


def opportunities() -> dict[str, object]:
    settings = read_sweep().settings
    return {each.name: found for each, found in zip(settings, all_opportunities(settings), strict=True)}


def run(method, freeze, rows=BODY_FROZEN, **record):
    write_run(SWEEP, method, f"freeze={freeze}", rows=rows, **record)


def overrides(opportunity) -> list[str]:
    return [fix.override for fix in opportunity.fixes]


def test_a_method_that_computes_the_gradients_is_told_what_requires_grad_saved_in_this_report():
    run("zero_lr", "backbone", cost=costs(1.0, COMPUTED, gradient_bytes=4096, optimizer_state_bytes=4096))
    run("requires_grad", "backbone", cost=costs(0.34, gradient_bytes=1024, optimizer_state_bytes=1024))
    found = opportunities()
    assert found["requires_grad"] is None
    assert found["zero_lr"].finding == f"It saves none of the FLOPs of training everything: {COMPUTED}."
    assert found["zero_lr"].saving == (
        "requires_grad takes 34% of the FLOPs of training everything and keeps 6 KiB less of gradients and optimizer state: "
        "measured here, with the same parameters frozen."
    )
    assert overrides(found["zero_lr"])[0] == "method=requires_grad"


@pytest.mark.parametrize(
    "other",
    [
        {"freeze": "head", "cost": costs(0.99)},
        {"freeze": "backbone", "cost": costs(0.34), "rows": LEAKED_ROWS},
        {"freeze": "backbone", "cost": {}},
        {"freeze": "backbone", "cost": costs(1.0)},
        {"freeze": "backbone", "cost": costs(0.34), "status": "failed"},
    ],
)
def test_no_saving_is_claimed_that_was_not_measured_in_a_run_that_held_with_the_same_frozen(other):
    run("zero_lr", "backbone", cost=costs(1.0, COMPUTED))
    run("requires_grad", other.pop("freeze"), **other)
    name = next(name for name in opportunities() if name.startswith("zero_lr"))
    assert opportunities()[name].saving == NOT_MEASURED


def test_what_another_frozen_set_saves_is_told_only_from_the_same_context():
    def write(method, freeze, lr, **more):
        write_run(SWEEP, method, f"freeze={freeze}", f"data.batch_size={lr}", **({"rows": BODY_FROZEN} | more))

    write("zero_lr", "head", 4, rows=HEAD_FROZEN, cost=costs(1.0, COMPUTED))
    write("requires_grad", "backbone", 64, cost=costs(0.34))
    assert opportunities()["zero_lr head data.batch_size=4"].saving == NOT_MEASURED
    write("requires_grad", "backbone", 4, cost=costs(0.5))
    assert "With backbone frozen instead" in opportunities()["zero_lr head data.batch_size=4"].saving
    assert "50%" in opportunities()["zero_lr head data.batch_size=4"].saving


def test_freezing_everything_is_no_saving_to_advise():
    run("zero_lr", "head", rows=HEAD_FROZEN, cost=costs(1.0, COMPUTED))
    run("requires_grad", "all", rows=BODY_FROZEN[:3], cost=costs(0.33))
    assert opportunities()["zero_lr head"].saving == NOT_MEASURED


def test_a_method_that_leaked_here_with_the_same_frozen_is_not_advised_as_it_was():
    run("zero_lr", "backbone", cost=costs(1.0, COMPUTED))
    run("requires_grad", "backbone", rows=LEAKED_ROWS, cost=costs(0.34))
    assert overrides(opportunities()["zero_lr"])[0] == "method=requires_grad method.clean=true"


def test_a_frozen_end_is_told_to_freeze_what_runs_first_and_where_that_was_measured():
    run("requires_grad", "head", rows=HEAD_FROZEN, cost=costs(0.99, AT_END))
    run("requires_grad", "backbone", cost=costs(0.34))
    head = opportunities()["requires_grad head"]
    assert head.finding.startswith("It saves 1.0% of the FLOPs")
    assert head.saving == (
        "Not measured here with the same parameters frozen. With backbone frozen instead, which trains other parameters, "
        "requires_grad takes 34% of the FLOPs of training everything: measured here."
    )
    assert overrides(head) == ["'freeze.patterns=[stem,one]'", "freeze=backbone"]


def test_a_frozen_middle_is_told_to_freeze_what_comes_before_it():
    rows = [ROWS[0], change_row("one.weight", "held"), *ROWS[2:]]
    run("requires_grad", "middle", rows=rows, cost=costs(0.95, BETWEEN))
    assert overrides(opportunities()["requires_grad"]) == ["'freeze.patterns=[stem,one]'", "freeze=backbone"]


def test_where_an_input_requires_a_gradient_backward_is_to_end_at_the_frozen_part():
    run("requires_grad", "backbone", cost=costs(0.9, FROM_INPUT))
    assert overrides(opportunities()["requires_grad"])[0] == "method=detach"


def test_every_reason_has_a_fix_that_can_be_pasted():
    for why in get_args(WhySmall):
        run("zero_lr", f"set{len(why)}", rows=HEAD_FROZEN, cost=costs(0.97, why))
    assert len(opportunities()) == len(get_args(WhySmall))
    for opportunity in opportunities().values():
        assert overrides(opportunity)
        for override in overrides(opportunity):
            check(compose_config("model=mlp", *override.strip("'").split()))


def test_gradients_and_state_of_what_is_frozen_are_a_finding_though_much_is_saved():
    held = {"frozen_gradient_bytes": 2048, "frozen_optimizer_state_bytes": 0}
    run("requires_grad", "backbone", cost=costs(0.4, **held))
    found = opportunities()["requires_grad"]
    assert found.finding == "2 KiB of gradients belong to parameters that are frozen."
    assert overrides(found)[0] == "method.clean=true"


def test_the_baseline_is_not_told_to_save():
    write_run(SWEEP, "none", "freeze=backbone", method={"_target_": UNFROZEN_TARGET}, cost=costs(1.0, COMPUTED))
    run("zero_lr", "backbone", cost=costs(1.0, COMPUTED))
    found = opportunities()
    assert found["none"] is None
    assert found["zero_lr"] is not None

"""What the phases of a run make of its rows, its notes and its forecasts, in cases that a schedule alone does not show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from runner.assemble.setup import assembled
from runner.contract import PAGE
from runner.errors import ConfigError
from runner.foresight.hazards import leak_hazards
from runner.foresight.plan import foresee_run
from runner.freezing.phases.phase import Phase, Plan
from tests.in_memory import config_with, run_experiment

BASE = ("model=mlp", "freeze=backbone")


def freezes_after_the_last_step(selection, run):
    """Return a plan that asks to freeze everything each time it is asked."""
    nothing = type(selection)(parameters={})
    blocks = {"all": tuple(selection.parameters)}
    return Plan([Phase(1, nothing)], blocks, window=4, observe=lambda step, values: Phase(step + 1, selection))


class FourBatches:
    """Data without a length, which end after four batches."""

    def __iter__(self):
        yield from ((torch.randn(4, 64), torch.randint(10, (4,))) for _ in range(4))


def test_a_phase_that_would_begin_after_the_last_step_does_not_begin():
    target = f"schedule._target_={__name__}.freezes_after_the_last_step"
    outcome = run_experiment(*BASE, "schedule=custom", target, "batches=8", "seed=1")
    first, second = outcome.phases
    assert (first.last_step, second.first_step, second.last_step) == (4, 5, 8)
    outcome = run_experiment(*BASE, "schedule=custom", target, "batches=6", "seed=1")
    assert [phase.last_step for phase in outcome.phases] == [4, 6]


def test_data_that_end_where_a_phase_would_begin_leave_what_trained_trained():
    data = f"data={{_target_: {__name__}.FourBatches}}"
    outcome = run_experiment(*BASE, data, "schedule=after", "schedule.step=5", "batches=9")
    assert {row["verdict"] for row in outcome.rows if row["kind"] == "parameter"} == {"trained"}
    assert any("ended before step 5, where more would have been frozen" in note for note in outcome.notes)


@pytest.mark.parametrize("every", [1, 3])
def test_a_group_that_stays_frozen_keeps_the_rate_to_which_a_scheduler_has_raised_it(every):
    more = ("freeze=all", "method=zero_lr", "scheduler=cosine_floor", "schedule=block_coordinate", "batches=9")
    outcome = run_experiment("model=mlp", *more, "schedule.blocks=[body,[norm,there,back],head]", f"schedule.every={every}")
    assert outcome.record["verdict"] == "leaked"


def test_gradients_that_only_trained_parameters_had_couple_nothing():
    assert run_experiment(*BASE, "schedule=gradual", "clip=1.0", "batches=8").record["couplings"] == []
    zero_lr = run_experiment(*BASE, "schedule=gradual", "clip=1.0", "batches=8", "method=zero_lr")
    assert zero_lr.record["couplings"] == ["clip"]


def hazards_of(*overrides):
    """Return the sentences about leaks that a plan foresees."""
    with assembled(config_with(*BASE, *overrides)) as setup:
        return [hazard.sentence for hazard in leak_hazards(foresee_run(setup), "zero_lr", "SGD")]


def test_the_rates_of_a_long_rehearsal_have_the_factors_of_their_steps():
    more = ("method=zero_lr", "scheduler=lambda", "schedule=freeze_out", "batches=100")
    assert bool(hazards_of(*more)) == (run_experiment(*BASE, *more).record["verdict"] == "leaked")


def test_a_hazard_is_about_the_steps_in_which_its_parameters_are_frozen():
    more = ("method=zero_lr", "scheduler=one_cycle", "schedule=gradual", "batches=9")
    texts = hazards_of(*more)
    assert texts
    assert all("/frozen becomes" in text for text in texts)


def test_with_reverse_what_is_in_no_block_trains():
    more = ("schedule=gradual", "schedule.reverse=true", "schedule.blocks=[body,norm]", "batches=6")
    first, *_, last = run_experiment(*BASE, *more).phases
    assert not any(row["frozen"] for row in first.rows)
    assert {row["name"] for row in last.rows if row["frozen"]} == {"body.weight", "body.bias", "norm.weight", "norm.bias"}


def test_everything_may_be_frozen_in_turn_without_a_note_that_nothing_trains():
    outcome = run_experiment("model=mlp", "freeze=all", "schedule=block_coordinate", "batches=6")
    assert outcome.record["trained_in_phases"] == 9
    assert not any("nothing trains" in note for note in outcome.notes)


@pytest.mark.parametrize(
    "schedule", [["gradual", "schedule.reverse=true"], ["block_coordinate"], ["after", "schedule.step=5"]]
)
def test_what_trained_before_it_was_frozen_is_counted_as_trained_in_the_summary(schedule, cli):
    _, out, _ = cli("model=mlp", "freeze=all", "batches=9", f"schedule={schedule[0]}", *schedule[1:], "cost=off")
    assert "kept every bit while frozen" in out
    assert "trained  9 parameters" in out


def test_a_thaw_that_trains_nothing_is_noted_without_strict():
    more = ("schedule=linear_probe_then_finetune", "schedule.factor=0", "batches=6")
    assert any("did not move in the phases that train them" in note for note in run_experiment(*BASE, *more).notes)


def test_items_at_one_step_that_cancel_are_refused():
    items = "schedule.phases=[{at: 3, thaw: there}, {at: 3, freeze: there}]"
    with pytest.raises(ConfigError, match="change nothing at step 3"):
        run_experiment(*BASE, "schedule=explicit", items, "batches=9")


def test_the_page_counts_what_trained_in_some_phases_too(cli):
    cli("model=mlp", "freeze=all", "schedule=block_coordinate", "batches=6", "cost=off", "hydra.run.dir=run")
    page = " ".join(Path("run", PAGE).read_text(encoding="utf-8").split())
    assert re.search(r"Trained</dt> ?<dd>(<[^>]*>| )*9 parameters", page)

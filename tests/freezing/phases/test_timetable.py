"""Which phase begins at which step, as planned or as a schedule decides during the run."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from runner.errors import ConfigError
from runner.freezing.phases.phase import Phase, Plan, Values
from runner.freezing.phases.timetable import Timetable
from runner.freezing.selection import Selection, select

NOTHING = Selection(parameters={})


def walk(plan: Plan, steps: int, model: nn.Module | None = None, on_step=lambda number: None) -> list[tuple[int, int]]:
    """Return (step, index of the phase) for each phase that begins after step 1; the loss of step n is n."""
    model = model or nn.Linear(1, 1)
    phases, losses, found = list(plan.phases), list[Tensor](), []
    timetable = Timetable(plan, phases, dict(model.named_parameters()), selection=select(model, ["*"]))
    for number in range(1, steps + 1):
        if number > 1 and timetable.next_begins(number, lambda: losses):
            found.append((number, timetable.present))
            assert phases[timetable.present].first == number
        losses.append(torch.tensor(float(number)))
        on_step(number)
    assert [phase.first for phase in phases] == sorted({phase.first for phase in phases})
    return found


def test_planned_phases_begin_at_their_steps():
    assert walk(Plan([Phase(1, NOTHING), Phase(2, NOTHING), Phase(7, NOTHING)]), 9) == [(2, 1), (7, 2)]
    assert walk(Plan([Phase(1, NOTHING), Phase(7, NOTHING)]), 6) == []


def test_a_schedule_is_asked_after_every_window_and_what_it_returns_begins_with_the_next_step():
    asked = []

    def observe(step: int, values: Values) -> Phase | None:
        asked.append((step, values.loss))
        return Phase(99, NOTHING) if step == 6 else None

    assert walk(Plan([Phase(1, NOTHING)], window=3, observe=observe), 12) == [(7, 1)]
    assert asked == [(3, 2.0), (6, 5.0), (9, 8.0)]  # the mean loss of each window; after the last step nothing can begin


def test_planned_phases_and_those_that_are_found_do_not_hide_one_another():
    def observe(step: int, values: Values) -> Phase:
        return Phase(0, NOTHING)

    planned = [Phase(1, NOTHING), Phase(5, NOTHING), Phase(10, NOTHING)]
    assert walk(Plan(planned, window=3, observe=observe), 12) == [(4, 1), (5, 2), (7, 3), (10, 4)]


def test_a_schedule_is_told_how_far_each_block_moved_and_the_norm_of_its_last_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    told: list[Values] = []

    def observe(step: int, values: Values) -> None:
        told.append(values)

    def on_step(number: int) -> None:
        with torch.no_grad():
            model[0].weight.add_(1.0)
        model[0].weight.grad = torch.full((2, 2), float(number))

    blocks = {"a": ("0.weight", "0.bias"), "b": ("1.weight",)}
    walk(Plan([Phase(1, NOTHING)], blocks, window=2, observe=observe), 5, model, on_step)
    first, second = told
    assert (first.weights, first.changes, first.gradients) == ({"a": sqrt(6), "b": 2.0}, {"a": 4.0, "b": 0.0}, {"a": 4.0})
    assert second.weights == {"a": pytest.approx(sqrt(4 * 9 + 2), rel=1e-15), "b": 2.0}
    assert (second.changes, second.gradients) == ({"a": 4.0, "b": 0.0}, {"a": 8.0})


def test_the_copies_that_are_kept_are_counted_and_there_are_none_if_all_is_planned():
    model = nn.Linear(3, 2)
    blocks = {"a": ("weight",)}
    for observe, size in ((None, 0), (lambda step, values: None, 24)):
        plan = Plan([Phase(1, NOTHING)], blocks, window=1, observe=observe)
        assert Timetable(plan, plan.phases, dict(model.named_parameters()), selection=NOTHING).copied_bytes == size


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([Phase(1, NOTHING)], r"^schedule: observe returned a list; it must return a Phase, or None$"),
        (False, r"^schedule: observe returned a bool; it must return a Phase, or None$"),
        (Phase(1, NOTHING, factors={"x": 1.0}), r"has a factor for x, which is no block$"),
        (Phase(1, Selection({"weight": torch.ones(1)})), r"freezes weight, which freeze does not select$"),
    ],
)
def test_what_a_schedule_returns_during_the_run_is_checked(returned, message):
    with pytest.raises(ConfigError, match=message):
        walk(Plan([Phase(1, NOTHING)], window=1, observe=lambda step, values: returned), 3)

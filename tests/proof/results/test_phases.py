"""The phases of an audit: spans of steps between two declarations, each with rows of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from runner.proof.audit import audit
from runner.proof.audit_report import Report
from tests.in_memory import run_experiment


def net() -> nn.Sequential:
    """Return two linear layers, `0` and `1`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make one step on fresh data."""
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()


def words(report: Report) -> list[tuple[int, int, dict[str, str]]]:
    """Return (first step, last step, {name of a tensor: verdict, and cause if it has one}) of each phase."""
    return [
        (each.first_step, each.last_step, {row["name"]: f"{row['verdict']} {row['cause']}".strip() for row in each.rows})
        for each in report.phases
    ]


def test_without_a_call_after_a_step_there_are_no_phases_and_no_copy_is_kept():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, [], optimizer) as report:
        report.freeze(["0"])
        report.unfreeze(["0"])
        step(model, optimizer)
        step(model, optimizer)
        log = report.watcher.phase_log
        assert (log.first, log.copies.values, log.evidence, log.seen_at) == (1, {}, {}, {})
    assert report.phases == []


def test_several_calls_between_two_steps_begin_one_phase_and_one_after_the_last_step_begins_none():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer) as report:
        model[0].requires_grad_(False)
        step(model, optimizer)
        report.unfreeze(["0"])
        model[0].requires_grad_(True)
        model[1].requires_grad_(False)
        report.freeze(["1"])
        step(model, optimizer)
        step(model, optimizer)
        report.unfreeze(["1"])
    first = {"0.weight": "held", "0.bias": "held", "1.weight": "trained", "1.bias": "trained"}
    second = {"0.weight": "trained", "0.bias": "trained", "1.weight": "held", "1.bias": "held"}
    assert words(report) == [(1, 1, first), (2, 3, second)]


def test_the_norms_of_a_phase_are_those_of_the_change_since_it_began():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, [], optimizer) as report:
        step(model, optimizer)
        step(model, optimizer)
        before = model[1].weight.detach().clone()
        report.freeze(["0"])
        model[0].requires_grad_(False)
        step(model, optimizer)
    (row,) = (row for row in report.phases[1].rows if row["name"] == "1.weight")
    difference = (model[1].weight.detach() - before).double()
    assert row["change_l2"] == pytest.approx(float(difference.norm()), rel=1e-12)
    assert row["initial_l2"] == pytest.approx(float(before.double().norm()), rel=1e-12)
    assert row["change_max"] == float(difference.abs().max())


def test_the_groups_flags_and_rates_of_a_phase_are_those_of_its_steps_and_not_those_of_the_next():
    model = net()
    groups = [{"params": list(model[0].parameters()), "name": "a"}, {"params": list(model[1].parameters()), "name": "b"}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with audit(model, [], optimizer) as report:
        step(model, optimizer)
        model[0].requires_grad_(False)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.param_groups[0]["params"] = []
        report.freeze(["0"])
        step(model, optimizer)
    first, second = ({row["name"]: row for row in phase.rows} for phase in report.phases)
    assert [first["0.bias"][key] for key in ("group", "lr", "requires_grad")] == ["a", 0.1, True]
    assert [second["0.bias"][key] for key in ("group", "lr", "requires_grad")] == ["", None, False]
    assert [second["1.bias"][key] for key in ("group", "lr", "requires_grad")] == ["b", 0.1, True]


def test_what_is_written_and_put_back_is_returned_in_each_phase_in_which_it_is_seen():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, every=1) as report:
        kept = model[0].weight.detach().clone()

        def write_and_put_back(*, puts_back: bool) -> None:
            model[0].weight.data.copy_(kept if puts_back else kept + 1)

        model[0].requires_grad_(False)
        for number in range(3):
            step(model, optimizer)
            write_and_put_back(puts_back=False)
            step(model, optimizer)
            write_and_put_back(puts_back=True)
            if number < 2:
                report.freeze(["0"])
    assert [(first, last, found["0.weight"]) for first, last, found in words(report)] == [
        (1, 2, "returned"),
        (3, 4, "returned"),
        (5, 6, "returned"),
    ]
    assert [row["seen_at"] for phase in report.phases for row in phase.rows if row["name"] == "0.weight"] == [2, 4, 6]


def test_a_leak_stands_in_the_phase_in_which_it_happened_alone():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer) as report:
        for number in range(3):
            model[0].requires_grad_(number == 1)
            step(model, optimizer)
            report.freeze(["0"])
    found = [each["0.weight"] for _, _, each in words(report)]
    assert found == ["held", "leaked gradient", "held"]
    assert report.leaks == ["0.weight", "0.bias"]


def frozen_by(cause: str, model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    """Let layer 0, which is to train from now on, stay as it is."""
    if cause == "no_gradient":
        model[0].requires_grad_(False)
    elif cause == "lr_zero":
        optimizer.param_groups[0]["lr"] = 0.0
    elif cause == "zero_gradient":
        for parameter in model[0].parameters():
            parameter.register_hook(torch.zeros_like)
    elif cause == "not_in_optimizer":
        optimizer.param_groups[0]["params"] = []
    elif cause == "rounded_away":
        optimizer.param_groups[0]["lr"] = 1e-30


@pytest.mark.parametrize("cause", ["no_gradient", "lr_zero", "zero_gradient", "not_in_optimizer", "rounded_away"])
def test_what_does_not_train_after_a_thaw_is_idle_with_its_cause(cause):
    model = net()
    optimizer = torch.optim.SGD([{"params": list(each.parameters())} for each in model], lr=0.1)
    with audit(model, ["0"], optimizer) as report:
        model[0].requires_grad_(False)
        step(model, optimizer)
        report.unfreeze(["0"])
        model[0].requires_grad_(True)
        frozen_by(cause, model, optimizer)
        step(model, optimizer)
        step(model, optimizer)
    assert [found["0.weight"] for _, _, found in words(report)] == ["held", f"idle {cause}"]


def test_what_trained_in_an_earlier_phase_is_idle_with_the_cause_of_the_phase_in_which_it_does_not():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, [], optimizer) as report:
        step(model, optimizer)
        report.freeze(["1"])
        model.requires_grad_(False)
        model[0].bias.requires_grad_(True)
        step(model, optimizer)
    assert [found["0.weight"] for _, _, found in words(report)] == ["trained", "idle no_gradient"]


def test_a_leak_between_two_looks_has_its_cause_in_the_phase_that_ends_before_the_next_look():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer) as report:
        for number in range(1, 8):
            model[0].requires_grad_(number == 6)
            step(model, optimizer)
            if number == 6:
                report.freeze(["0"])
    assert report.looks == [1, 2, 4, 7]
    assert [(first, last, found["0.weight"]) for first, last, found in words(report)] == [
        (1, 6, "leaked gradient"),
        (7, 7, "held"),
    ]
    assert [row["seen_at"] for row in report.phases[0].rows if row["name"] == "0.weight"] == [6]


@pytest.mark.parametrize("make", [torch.nn.utils.parametrizations.weight_norm, lambda layer: None], ids=["new", "same"])
def test_a_tensor_that_appears_in_a_phase_is_in_it_and_in_no_earlier_one(make: Callable[[nn.Module], object]):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, [], optimizer) as report:
        step(model, optimizer)
        report.freeze(["0"])
        model[0].requires_grad_(False)
        model.add_module("late", nn.Linear(3, 3))
        make(model.late)
        optimizer.add_param_group({"params": list(model.late.parameters())})
        step(model, optimizer)
    earlier, later = ({name for name in found if name.startswith("late")} for _, _, found in words(report))
    assert earlier == set()
    assert later == {f"late.{name}" for name, _ in model.late.named_parameters()}


def test_after_the_last_step_that_is_watched_there_are_no_more_phases():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, [], optimizer, until=3) as report:
        for number in range(1, 6):
            step(model, optimizer)
            if number in (1, 4):
                report.freeze([str(int(number > 1))])
    assert [(first, last) for first, last, _ in words(report)] == [(1, 1), (2, 3)]


@pytest.mark.parametrize("method", ["exclude", "requires_grad", "to_buffer", "zero_lr"])
def test_what_trains_before_it_is_frozen_is_trained_in_the_first_phase_under_each_method(method):
    outcome = run_experiment(f"method={method}", "freeze=backbone", "schedule=after", "schedule.step=4", "batches=6")
    first, second = outcome.phases
    assert {(row["verdict"], row["requires_grad"], row["lr"]) for row in first.rows if row["kind"] == "parameter"} == {
        ("trained", True, 0.1)
    }
    assert {row["group"] for row in first.rows if row["kind"] == "parameter"} == {"frozen", "trainable"}
    assert {row["verdict"] for row in second.rows if row["frozen"]} == {"held"}

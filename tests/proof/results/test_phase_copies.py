"""Copies of tensors at the beginning of a phase: the norms are those of full copies, and few copies are kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from runner import audit
from runner.proof.audit_report import Report
from runner.proof.changes import Snapshot, measure_change, snapshot
from runner.tensors import same_bits

TURNS = [["0"], ["1", "2"], ["0"], ["2"], ["0", "1"]]  # what is frozen in each phase, of the modules of `model_of`
NORMS = ("initial_l2", "change_l2", "change_max", "moved", "moved_elements")


def model_of() -> nn.Sequential:
    """Return a layer large enough for sums in float32, a BatchNorm, and a head with a bias that never gets a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 70), nn.BatchNorm1d(70), nn.Linear(70, 3))
    model.register_parameter("unused", nn.Parameter(torch.ones(5)))
    return model


def train_in_turns(model: nn.Sequential, report: Report, leak_in: int | None = None) -> Iterator[None]:
    """Train the model, and yield before the first phase and after each; `leak_in`: a phase that writes to what is frozen."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    yield
    for number, (before, now) in enumerate(pairwise([[], *TURNS])):
        thawed, frozen = [name for name in before if name not in now], [name for name in now if name not in before]
        for name, module in model.named_children():
            module.requires_grad_(name not in now)
        if thawed:
            report.unfreeze(thawed)
        if frozen:
            report.freeze(frozen)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 70)).square().mean().backward()
            optimizer.step()
        if number == leak_in:
            with torch.no_grad():
                model.get_submodule(now[0]).weight.view(-1)[3] += 1
        yield


def snapshots_and_report(leak_in: int | None = None) -> tuple[list[Snapshot], Report]:
    """Return (all tensors before the first phase and after each, the report)."""
    model = model_of()
    with audit(model, []) as report:
        copies = [snapshot(model) for _ in train_in_turns(model, report, leak_in)]
    return copies, report


def norms_between(before: Snapshot, after: Snapshot) -> dict[str, tuple[object, ...]]:
    """Return {name of a tensor: how far it moved between two copies}."""
    found = {name: measure_change(copy, after.values[name]) for name, copy in before.values.items()}
    return {name: tuple(getattr(change, key) for key in NORMS) for name, change in found.items()}


def test_the_norms_of_each_phase_are_those_between_full_copies_at_its_ends():
    for leak_in in (None, 0, 3):
        copies, report = snapshots_and_report(leak_in)
        expected = [norms_between(*pair) for pair in pairwise(copies)]
        assert [{row["name"]: tuple(row[key] for key in NORMS) for row in phase.rows} for phase in report.phases] == expected


def test_a_tensor_that_leaks_in_one_phase_leaked_in_that_phase_alone():
    _, report = snapshots_and_report(leak_in=3)
    words = [{row["name"]: row["verdict"] for row in phase.rows}["2.weight"] for phase in report.phases]
    assert words == ["trained", "held", "trained", "leaked", "trained"]


def test_what_a_tensor_did_before_it_was_declared_frozen_is_no_leak_in_its_phase():
    model = model_of()
    with audit(model, []) as report:
        steps = train_in_turns(model, report)
        next(steps), next(steps)
        report.freeze(["1"])
        with torch.no_grad():
            model[2].weight.zero_()
            model.unused.zero_()
        report.freeze(["2", "unused"])
        model.zero_grad()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    found = {row["name"]: (row["verdict"], row["initial_l2"]) for row in report.phases[-1].rows}
    assert found["2.weight"] == found["unused"] == ("held", 0)


def test_a_parameter_that_stays_idle_in_a_phase_has_its_cause_and_what_moves_has_none():
    _, report = snapshots_and_report()
    for phase in report.phases:
        assert {row["name"]: row["cause"] for row in phase.rows if row["cause"]} == {"unused": "no_gradient"}


def test_an_audit_of_phases_keeps_one_more_copy_of_what_moved_before_the_present_phase_and_none_of_the_rest():
    model = model_of()
    with audit(model, []) as report:
        following, log = report.watcher.following, report.watcher.phase_log
        initial = {row.name: row.reference for row in following.rows}
        at_begin, tensors = [], {name: entry.tensor for name, entry in following.entries.items()}
        for _ in train_in_turns(model, report):
            at_begin.append({name: tensor.clone() for name, tensor in tensors.items()})
            kept = [*initial.values(), *(row.reference for row in following.rows), *map(log.copies.of, following.rows)]
            moved = {
                name for name, value in at_begin[max(0, len(at_begin) - 2)].items() if not same_bits(value, initial[name])
            }
            sizes = {each.data_ptr(): each.nbytes for each in kept}
            assert sum(sizes.values()) == sum(tensors[name].nbytes * (1 + (name in moved)) for name in tensors)

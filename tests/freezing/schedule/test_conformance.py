"""Every schedule of `conf/schedule` works with every method of `conf/method`, or the run is skipped with its reason."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner.assemble.setup import assembled
from runner.config.schema import CONF
from runner.contract import CHANGE_COLUMNS
from runner.errors import SkippedError
from runner.experiment import Outcome, TrainingState, audit_options, experiment, training_steps
from runner.freezing.schedule import Phase, Plan
from runner.freezing.selection import Selection, nothing_of
from runner.methods.base import FreezingMethod
from runner.proof.audit import audit
from runner.proof.results.phases import PhaseRows
from runner.runs.folder import csv_text
from runner.runs.write import phases_csv, steps_csv
from tests.conftest import read_table
from tests.in_memory import config_with

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
FILES = sorted(path.stem for path in (CONF / "schedule").glob("*.yaml") if path.stem != "custom")
ITEMS = "[{at: 3, thaw: [norm, body.bias]}, {at: 5, freeze: [norm], thaw: [there, back], factors: {head: 0.5}}]"
# Further overrides of each schedule; a word behind `-` tells the variants of one file apart.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "after": ("schedule.step=4",),
    "block_coordinate": ("schedule.every=2",),
    "block_coordinate-random": ("schedule.every=2", "schedule.by=random", "schedule.state=keep"),
    "block_coordinate-gradient_norm": ("schedule.every=2", "schedule.by=gradient_norm"),
    "constant": (),
    "explicit": (f"schedule.phases={ITEMS}",),
    "freeze_out": ("schedule.t0=0.7",),
    "gradual": (),
    "gradual-reverse": ("schedule.reverse=true", "schedule.state=drop"),
    "linear_probe_then_finetune": (),
    "when_still": ("schedule.window=2", "schedule.threshold=0.05"),
}
LEAKY = ("none", "zero_grad")  # of the methods, those that leak where an optimizer has momentum


def node(name: str) -> tuple[str, ...]:
    """Return the overrides that choose a schedule of SCHEDULES, for a run of eight steps."""
    return f"schedule={name.partition('-')[0]}", *SCHEDULES[name], "freeze=backbone", "batches=8", "cost=off", "threads=1"


@cache
def outcome_of(name: str, method: str, *more: str) -> Outcome | str:
    """Return the outcome of a run, or the reason why it is skipped."""
    try:
        return experiment(config_with(*node(name), f"method={method}", *more))
    except SkippedError as skipped:
        return str(skipped)


def spans(phases: list[PhaseRows]) -> list[tuple[int, int, frozenset[str]]]:
    """Return (first step, last step, names declared frozen) of each phase."""
    return [(each.first_step, each.last_step, frozenset(r["name"] for r in each.rows if r["frozen"])) for each in phases]


def test_every_file_is_tried():
    assert {name.partition("-")[0] for name in SCHEDULES} == set(FILES)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_in_each_phase_what_is_frozen_holds_and_the_rest_trains_or_the_run_is_skipped_with_a_reason(name, method):
    outcome = outcome_of(name, method)
    if isinstance(outcome, str):
        assert (method, outcome.split(",")[0].split()[-2:]) == ("detach", ["is", "frozen"])
        return
    assert [step.number for step in outcome.steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    rows = [row for phase in outcome.phases for row in phase.rows] or outcome.rows
    held = {row["verdict"] for row in rows if row["frozen"]}
    if method not in LEAKY:
        assert held <= {"held", "returned"} if method == "restore" else held == {"held"}
        assert outcome.record["verdict"] == "held"
    if method == "none" and name != "freeze_out":  # which multiplies the rate of what it has frozen by 0
        assert "leaked" in held
    assert {row["verdict"] for row in rows if not row["frozen"] and row["kind"] == "parameter"} == {"trained"}
    plain = outcome_of(name, "requires_grad")
    if method not in LEAKY:  # what they leak may change what a schedule decides
        assert spans(outcome.phases) == spans(plain.phases)
    for span, record in zip(spans(outcome.phases), outcome.record["phases"], strict=False):
        assert (record["first_step"], record["last_step"], record["frozen"]) == (*span[:2], len(span[2]))


@dataclass
class Watched:
    """What was so of a run after each step: the optimizer, its group dicts, its group names; and the model at the end."""

    optimizers: list[int] = field(default_factory=list)
    groups: list[tuple[int, ...]] = field(default_factory=list)
    names: list[tuple[str, ...]] = field(default_factory=list)
    model: nn.Module | None = None


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return the order of all tensors and modules of a model, their types, flags, modes and attributes, and its hooks."""
    tensors = {
        name: (type(each), each.requires_grad, len(each._backward_hooks or ()), len(each._post_accumulate_grad_hooks or ()))
        for name, each in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    }
    modules = {
        name: (
            type(each),
            each.training,
            list(vars(each)),
            [len(hooks) for key, hooks in vars(each).items() if "_hooks" in key],
        )
        for name, each in model.named_modules()
    }
    order = [(list(each._parameters), list(each._buffers), list(each._modules)) for each in model.modules()]
    return {"tensors": tensors, "names": list(tensors), "modules": modules, "order": order}


def watch(*overrides: str) -> Watched:
    """Do a run step by step, and note what its optimizer is after each."""
    watched = Watched()
    with assembled(config_with(*overrides)) as setup:
        watched.model = setup.built_model
        with audit(setup.model, setup.phases[0].selection, setup.optimizer, **audit_options(setup)) as report:
            for _ in training_steps(setup, report, TrainingState()):
                watched.optimizers.append(id(setup.optimizer))
                watched.groups.append(tuple(map(id, setup.optimizer.param_groups)))
                watched.names.append(tuple(group["name"] for group in setup.optimizer.param_groups))
                held = [parameter for group in setup.optimizer.param_groups for parameter in group["params"]]
                assert len({id(parameter) for parameter in held}) == len(held)
    return watched


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "method", ["cached_prefix", "detach", "exclude", "grad_none", "restore", "to_buffer", "zero_grad", "zero_lr"]
)
def test_there_is_one_optimizer_with_the_same_groups_throughout_and_all_is_put_back_at_the_end(name, method):
    if isinstance(outcome_of(name, method), str):
        return
    watched = watch(*node(name), f"method={method}", "freeze.buffers=frozen")
    assert len(watched.optimizers) == 8
    assert {len(set(each)) for each in (watched.optimizers, watched.groups, watched.names)} == {1}
    fresh = type(watched.model)([64])
    assert state_of(watched.model) == state_of(fresh)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("constant", "after")])
def test_two_identical_runs_give_identical_bytes(name):
    texts = []
    for _ in range(2):
        outcome = experiment(config_with(*node(name), "optimizer=adamw", "freeze.buffers=frozen"))
        steps = list(csv.DictReader(io.StringIO(steps_csv(outcome))))
        without_seconds = [{key: value for key, value in step.items() if key != "seconds"} for step in steps]
        record = json.dumps(outcome.record["phases"])
        texts.append((csv_text(CHANGE_COLUMNS, outcome.rows), phases_csv(outcome.phases), without_seconds, record))
    assert texts[0] == texts[1]
    assert len(outcome.phases) > 1


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("constant", "after")])
def test_modules_are_in_eval_mode_while_they_are_frozen_and_their_buffers_hold(name):
    outcome = experiment(config_with(*node(name), "freeze.buffers=frozen"))
    for phase in outcome.phases:
        rows = {row["name"]: row for row in phase.rows}
        for buffer in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            assert rows[buffer]["frozen"] is rows["norm.weight"]["frozen"]
            assert rows[buffer]["verdict"] == ("held" if rows[buffer]["frozen"] else "drifted")


# The same in a loop of one's own


def by_hand(
    phases: list[tuple[int, Selection]], model: nn.Module, optimizer: Any, batches: Any, loss: Callable
) -> list[PhaseRows]:
    """Train in a plain loop that sets flags and tells the audit; return the phases of its report."""
    present = phases[0][1]
    for parameter in present.parameters.values():
        parameter.requires_grad_(False)
    with audit(model, present, optimizer) as report:
        for number, batch in enumerate(batches, 1):
            for after in [selection for first, selection in phases[1:] if first == number]:
                thawed = {name: each for name, each in present.parameters.items() if name not in after.parameters}
                if thawed:
                    report.unfreeze(Selection(thawed))
                for name, parameter in {**present.parameters, **after.parameters}.items():
                    parameter.requires_grad_(name not in after.parameters)
                report.freeze(after)
                present = after
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return report.phases


@pytest.mark.parametrize("name", ["after", "block_coordinate-random", "explicit", "gradual", "gradual-reverse"])
def test_a_plain_loop_that_tells_the_audit_has_the_phases_and_rows_of_the_run(name):
    options = ("method=requires_grad", "groups=one", "optimizer=sgd")
    keys = [text for text in node(name) if "state=" not in text and "factors" not in text]
    if name == "explicit":
        keys.append("schedule.phases=[{at: 3, thaw: [norm, body.bias]}, {at: 5, freeze: [norm], thaw: [there, back]}]")
    decay = ["schedule.rate_decay=1"] if name.startswith("gradual") else ["schedule.state=keep"] if "block" in name else []
    config = config_with(*keys, *options, *decay)
    outcome = experiment(config)
    with assembled(config) as setup:
        planned = [(phase.first, phase.selection) for phase in setup.plan.phases]
        model, task = setup.built_model, setup.task
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        torch.manual_seed(0)
        model.train()
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "name": "all"}], lr=0.1, momentum=0.9)
        batches = [batch for step in setup.feed.steps for batch in step]
        found = by_hand(planned, model, optimizer, batches, task)
    without_group = [[{k: v for k, v in row.items() if k != "group"} for row in phase.rows] for phase in outcome.phases]
    assert spans(found) == spans(outcome.phases)
    assert [[{k: v for k, v in row.items() if k != "group"} for row in phase.rows] for phase in found] == without_group


# What cannot be switched


class RefusesTwo(FreezingMethod):
    """Refuses to freeze `body` alone, and freezes nothing."""

    def skip(self, model, selection):
        return "not this one" if set(selection.parameters) == {"body.weight", "body.bias"} else None


def body_second(selection: Selection) -> list[Phase]:
    """Return three phases: nothing is frozen, then `body`, then all."""
    body = {name: each for name, each in selection.parameters.items() if name.startswith("body")}
    return [Phase(1, nothing_of(selection)), Phase(4, Selection(body)), Phase(6, selection)]


def body_found(selection: Selection) -> Plan:
    """Return a plan that finds the phase that freezes `body` during the run."""
    first, second, _ = body_second(selection)
    return Plan([first], window=3, observe=lambda step, values: second)


@pytest.mark.parametrize(("schedule", "steps"), [(body_second, 0), (body_found, 3)])
def test_a_method_that_cannot_freeze_what_a_phase_freezes_skips_the_run_before_it_trains_if_it_can_be_known(schedule, steps):
    made = []
    method = f"method={{_target_: {__name__}.RefusesTwo}}"
    options = ("freeze=backbone", "batches=8", "cost=off", f"schedule={{_target_: {__name__}.{schedule.__name__}}}")
    with pytest.raises(SkippedError, match=r"^not this one$"):
        experiment(config_with(method, *options), made.append)
    assert len(made) == steps


def test_a_run_of_the_command_writes_its_phases_and_its_worst_verdict(cli):
    options = ("model=mlp", "cost=off", "batches=8", "freeze=backbone", "hydra.run.dir=run", "optimizer=adam")
    assert cli(*options, "schedule=explicit", "schedule.phases=[{at: 3, thaw: ['**']}, {at: 6, freeze: ['**']}]")[0] == 0
    record = json.loads(Path("run/run.json").read_text())
    assert record["verdict"] == "held"
    rows = read_table(Path("run/phases.csv"))
    of = [(row["phase"], row["first_step"], row["last_step"], row["verdict"]) for row in rows if row["name"] == "body.bias"]
    assert of == [("1", "1", "2", "held"), ("2", "3", "5", "trained"), ("3", "6", "8", "held")]

"""The straight line: config -> model -> selection -> method -> groups -> train -> changes -> verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.build import build_a
from runner.changes import Snapshot, snapshot, trained_digest
from runner.config import Config
from runner.contract import Coupling, Row
from runner.cost import Cost, Meter, build_meter
from runner.errors import SkippedError
from runner.findings import Report
from runner.foresight import couplings, warn
from runner.groups import Group, cut_groups, refined, regroup, without_empty
from runner.inference import hold_in_inference
from runner.machine import machine, pick_device, seed_all
from runner.methods.base import FreezingMethod
from runner.passes import drawn
from runner.preflight import Stage
from runner.schedule import Phase, build_phases, spans
from runner.schedulers import build_scheduler
from runner.selection import Selection, select_as_declared
from runner.tasks import task_of
from runner.tensors import refuse_unless_dense
from runner.train import Step, train
from runner.watch import audit


@dataclass
class Line:
    """Everything that stands before the first step. `phases` say what is frozen when, `selection` what ever is."""

    built: nn.Module  # as the config declares it
    model: nn.Module  # as the method prepared it, to train
    before: Snapshot
    selection: Selection
    phases: list[Phase]
    method: FreezingMethod
    cut: list[Group]  # the optimizer's groups, before the method has a say
    stages: list[Stage]  # the phases begun, with the groups of each
    optimizer: Optimizer
    device: torch.device
    meter: Meter
    undo: ExitStack
    notes: list[str] = field(default_factory=list)
    couples: bool = False  # whether gradients of what is frozen change how the optimizer steps the rest

    @property
    def parameters(self) -> list[Tensor]:
        """Those of the model as built."""
        return [entry.tensor for entry in self.before.entries.values() if entry.kind == "parameter"]


@dataclass
class Outcome:
    """What one run measured."""

    model: nn.Module
    selection: Selection
    rows: list[Row]
    steps: list[Step]
    looks: list[int]
    notes: list[str]
    device: str
    threads: int
    trained_digest: str
    couplings: list[Coupling]
    cost: Cost
    interrupted: bool

    @property
    def losses(self) -> list[float]:
        """The loss of each step; the only time that they leave the device."""
        return torch.stack([step.loss for step in self.steps]).tolist() if self.steps else []


@contextmanager
def assembled(config: Config) -> Iterator[Line]:
    """Build what the config declares, up to the first step; leaving it restores the model and the machine."""
    with ExitStack() as undo:
        undo.enter_context(machine(config.threads, config.deterministic))
        device = pick_device(config.device.value)
        seed_all(config.seed)
        model = built = build_a(nn.Module, config.model.build, "model.build").to(device)
        refuse_unless_dense(model)
        meter = build_meter(config, device)
        meter.built(model)
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
        before = snapshot(model)
        selection = select_as_declared(model, config)
        method = build_a(FreezingMethod, config.method, "method")
        if reason := method.skip(model, selection):
            raise SkippedError(reason)
        phases = build_phases(config, selection)
        now = phases[0].selection
        hold_in_inference(now, undo)
        cut = cut_groups(config, model, selection)
        model = method.prepare(model, now, undo)
        groups = without_empty(method.groups(cut, now))
        if len(phases) > 1:
            groups = refined(groups, method.groups(cut, selection))
        optimizer = build_a(Optimizer, config.optimizer, "optimizer", [dict(group) for group in groups])
        line = Line(built, model, before, selection, phases, method, cut, [], optimizer, device, meter, undo)
        line.stages.append(Stage(phases[0], groups))
        yield line


def experiment(
    config: Config,
    on_step: Callable[[Step], None] = lambda step: None,
    on_warning: Callable[[str], None] | None = None,
) -> Outcome:
    """One run, from a config to the rows that say what became of every parameter and buffer.

    `on_warning` is told what would leak, as far as that can be foreseen without a batch, as a phase begins. An
    interrupt (Ctrl-C) ends the training and keeps what was measured. Raises ConfigError for what the config got wrong and
    SkippedError where the method cannot serve this model.
    """
    with assembled(config) as line:
        steps: list[Step] = []
        interrupted = False
        with audit(line.model, line.phases[0].selection, line.optimizer, before=line.before) as report:
            try:
                for step in trained(line, config, report, on_warning):
                    steps.append(step)
                    on_step(step)
            except KeyboardInterrupt:
                interrupted = True
        cost: Cost = {}  # of a run that was interrupted, whose end is not to wait
        if steps and not interrupted:
            left_out = line.method.left_out()
            cost = line.meter.read(line.model, line.optimizer, line.selection, line.parameters, left_out)
        return Outcome(
            model=line.built,
            selection=line.selection,
            rows=report.rows,
            steps=steps,
            looks=report.looks,
            notes=[*line.notes, *report.notes, *line.meter.notes],
            device=str(line.device),
            threads=torch.get_num_threads(),
            trained_digest=trained_digest(line.before, line.selection),
            couplings=couplings(line, config),
            cost=cost,
            interrupted=interrupted,
        )


def trained(line: Line, config: Config, report: Report, on_warning: Callable[[str], None] | None = None) -> Iterator[Step]:
    """The run's steps, phase by phase."""
    task = task_of(config, line.device)
    scheduler = build_scheduler(config, line.optimizer)  # under the audit, which has to see the declared rates
    task = line.meter.watched(task, line.optimizer, line.undo)
    line.method.attach(line.optimizer, line.phases[0].selection, line.undo)
    seed_all(config.seed)
    batches = drawn(config, line.device)
    done = 0
    for phase, count in spans(line.phases, config.steps):
        if done < phase.first - 1:
            line.notes.append(f"the data ended before step {phase.first}, from which on more was to be frozen")
            return
        if phase is not line.phases[0]:
            freeze_now(line, phase)
            report.freeze(phase.selection)
        if on_warning:
            warn(line, config, on_warning)
        fed = line.method.feed(islice(batches, count), line.model, task, line.notes.append)
        fed = line.meter.first_of(fed, phase.first, line.optimizer, line.undo)
        how = scheduler, config.clip, config.zero_grad_to_none, phase.first
        for step in train(line.model, line.optimizer, task, fed, *how):
            done = step.number
            yield step


def freeze_now(line: Line, phase: Phase) -> None:
    """Begin a later phase: the method acts again, and the one optimizer is regrouped."""
    hold_in_inference(phase.selection, line.undo)
    line.model = line.method.prepare(line.model, phase.selection, line.undo)
    groups = line.method.groups(line.cut, phase.selection)
    regroup(line.optimizer, line.stages[-1].groups, groups)
    line.method.attach(line.optimizer, phase.selection, line.undo)
    line.stages.append(Stage(phase, groups))

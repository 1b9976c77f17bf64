"""The straight line: config -> model -> selection -> method -> groups -> train -> changes -> verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.build import build, build_a
from runner.changes import Snapshot, snapshot
from runner.config import Config
from runner.errors import SkippedError
from runner.groups import Group, refined, regroup, with_lrs, without_empty
from runner.inference import hold_in_inference
from runner.machine import machine, pick_device, seed_all
from runner.methods.base import FreezingMethod
from runner.patterns import HEAD
from runner.rows import Row
from runner.schedule import Phase, spans
from runner.selection import Selection, find_head, select
from runner.tasks import in_bfloat16
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
    groups: list[Group]
    optimizer: Optimizer
    device: torch.device
    undo: ExitStack


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
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
        before = snapshot(model)
        selection = select_as_declared(model, config)
        method = build_a(FreezingMethod, config.method, "method")
        if reason := method.skip(model, selection):
            raise SkippedError(reason)
        phases = build(config.schedule, "schedule", selection)
        now = phases[0].selection
        hold_in_inference(now, undo)
        model = method.prepare(model, now, undo)
        cut = cut_groups(config, model, selection)
        groups = without_empty(method.groups(cut, now))
        if len(phases) > 1:
            groups = refined(groups, method.groups(cut, selection))
        optimizer = build_a(Optimizer, config.optimizer, "optimizer", [dict(group) for group in groups])
        yield Line(built, model, before, selection, phases, method, groups, optimizer, device, undo)


def experiment(config: Config, on_step: Callable[[Step], None] = lambda step: None) -> Outcome:
    """One run, from a config to the rows that say what became of every parameter and buffer.

    An interrupt (Ctrl-C) ends the training and keeps what was measured. Raises ConfigError for what the config got
    wrong and SkippedError where the method cannot serve this model.
    """
    task, data = build(config.task, "task"), build(config.data, "data")
    with assembled(config) as line:
        task = in_bfloat16(task, line.device) if config.autocast else task
        steps: list[Step] = []
        interrupted = False
        with audit(line.model, line.phases[0].selection, line.optimizer, before=line.before) as report:
            scheduler = build_scheduler(config, line.optimizer)  # here, for the audit has to see the declared rates
            line.method.attach(line.optimizer, line.phases[0].selection, line.undo)
            seed_all(config.seed)
            batches = data.batches(config.batches, config.model.input, config.model.classes, config.seed)
            on_device = (to_device(batch, line.device) for batch in islice(batches, config.batches))
            try:
                for phase, count in spans(line.phases, config.batches):
                    if phase is not line.phases[0]:
                        freeze_now(line, config, phase)
                        report.freeze(phase.selection)
                    of_phase = islice(on_device, count)
                    how = scheduler, config.clip, config.zero_grad_to_none, phase.first
                    for step in train(line.model, line.optimizer, task, of_phase, *how):
                        steps.append(step)
                        on_step(step)
            except KeyboardInterrupt:
                interrupted = True
        return Outcome(
            model=line.built,
            selection=line.selection,
            rows=report.rows,
            steps=steps,
            looks=report.looks,
            notes=report.notes,
            device=str(line.device),
            threads=torch.get_num_threads(),
            trained_digest=trained_digest(line.before, line.selection),
            interrupted=interrupted,
        )


def freeze_now(line: Line, config: Config, phase: Phase) -> None:
    """Begin a later phase: the method acts again, and the one optimizer is regrouped."""
    hold_in_inference(phase.selection, line.undo)
    line.model = line.method.prepare(line.model, phase.selection, line.undo)
    regroup(line.optimizer, line.groups, line.method.groups(cut_groups(config, line.model, line.selection), phase.selection))
    line.method.attach(line.optimizer, phase.selection, line.undo)


def cut_groups(config: Config, model: nn.Module, selection: Selection) -> list[Group]:
    """The optimizer's groups as the config declares them, before the method has a say."""
    groups = build(config.groups.cut, "groups.cut", model, selection)
    return with_lrs(groups, model, selection, [(entry.pattern, entry.lr) for entry in config.groups.lr])


def build_scheduler(config: Config, optimizer: Optimizer) -> Any:
    """The learning rate's scheduler, or None."""
    return build(config.scheduler, "scheduler", optimizer) if config.scheduler else None


def select_as_declared(model: nn.Module, config: Config) -> Selection:
    """The config's selection; where it leaves the head to be found, by its number of outputs, a note says which it is."""
    freeze, head = config.freeze, config.model.head
    if head != "auto" or HEAD not in (*freeze.patterns, *freeze.keep):
        return select(model, freeze.patterns, freeze.keep, freeze.buffers.value, head)
    head = find_head(model, config.model.classes)
    selection = select(model, freeze.patterns, freeze.keep, freeze.buffers.value, head)
    return replace(selection, notes=(f"model.head=auto took {head} for the classifier", *selection.notes))


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in its tuples, lists and dicts on the device."""
    if isinstance(batch, Mapping):
        return {key: to_device(part, device) for key, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [to_device(part, device) for part in batch]
    return batch.to(device) if isinstance(batch, torch.Tensor) else batch


def trained_digest(before: Snapshot, selection: Selection) -> str:
    """sha256 over name, dtype, shape and bytes, by name, of the parameters declared trainable, as they are now."""
    digest = hashlib.sha256()
    for name, entry in sorted(before.entries.items()):
        if entry.kind == "parameter" and entry.tensor not in selection:
            tensor = entry.tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

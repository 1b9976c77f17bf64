"""The straight line: config -> model -> selection -> method -> groups -> train -> changes -> verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.build import build
from runner.changes import Snapshot, snapshot
from runner.config import Config
from runner.errors import SkippedError
from runner.folder import Row
from runner.groups import with_lrs, without_empty
from runner.inference import hold_in_inference
from runner.machine import machine, pick_device, seed_all
from runner.methods.base import FreezingMethod
from runner.selection import Selection, select
from runner.tensors import refuse_unless_dense
from runner.train import Step, train
from runner.watch import audit


@dataclass
class Line:
    """Everything that stands before the first step."""

    model: nn.Module
    before: Snapshot
    selection: Selection
    method: FreezingMethod
    optimizer: Optimizer
    scheduler: Any
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
        model = build(config.model.build, "model.build").to(device)
        refuse_unless_dense(model)
        before = snapshot(model)
        selection = select(model, config.freeze.patterns, config.freeze.keep, config.freeze.buffers.value, config.model.head)
        method: FreezingMethod = build(config.method, "method")
        if reason := method.skip(model, selection):
            raise SkippedError(reason)
        hold_in_inference(selection, undo)
        model = method.prepare(model, selection, undo)
        groups = build(config.groups.cut, "groups.cut", model, selection)
        groups = with_lrs(groups, model, selection, [(entry.pattern, entry.lr) for entry in config.groups.lr])
        groups = without_empty(method.groups(groups, selection))
        optimizer = build(config.optimizer, "optimizer", groups)
        scheduler = build(config.scheduler, "scheduler", optimizer) if config.scheduler else None
        yield Line(model, before, selection, method, optimizer, scheduler, device, undo)


def experiment(config: Config, on_step: Callable[[Step], None] = lambda step: None) -> Outcome:
    """One run, from a config to the rows that say what became of every parameter and buffer.

    An interrupt (Ctrl-C) ends the training and keeps what was measured. Raises ConfigError for what the config got
    wrong and SkippedError where the method cannot serve this model.
    """
    task, data = build(config.task, "task"), build(config.data, "data")
    with assembled(config) as line:
        steps: list[Step] = []
        interrupted = False
        with audit(line.model, line.selection, line.optimizer, before=line.before) as report:
            line.method.attach(line.optimizer, line.selection, line.undo)
            seed_all(config.seed)
            batches = data.batches(config.batches, config.model.input, config.model.classes, config.seed)
            on_device = ([part.to(line.device) for part in batch] for batch in batches)
            try:
                for step in train(
                    line.model, line.optimizer, task, on_device, line.scheduler, config.clip, config.zero_grad_to_none
                ):
                    steps.append(step)
                    on_step(step)
            except KeyboardInterrupt:
                interrupted = True
        return Outcome(
            model=line.model,
            selection=line.selection,
            rows=report.rows,
            steps=steps,
            looks=report.looks,
            device=str(line.device),
            threads=torch.get_num_threads(),
            trained_digest=trained_digest(line.before, line.selection),
            interrupted=interrupted,
        )


def trained_digest(before: Snapshot, selection: Selection) -> str:
    """sha256 over name, dtype, shape and bytes, by name, of the parameters declared trainable, as they are now."""
    digest = hashlib.sha256()
    for name, entry in sorted(before.entries.items()):
        if entry.kind == "parameter" and entry.tensor not in selection:
            tensor = entry.tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

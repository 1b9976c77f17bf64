"""The straight line: config -> model -> selection -> method -> groups -> train -> changes -> verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.build import build, build_a
from runner.changes import Snapshot, snapshot
from runner.config import Config
from runner.errors import ConfigError, SkippedError
from runner.findings import Report
from runner.groups import Group, refined, regroup, with_lrs, without_empty
from runner.hazards import FORESEEN_BY_FLAGS, leaks
from runner.inference import hold_in_inference
from runner.machine import machine, pick_device, seed_all
from runner.methods.base import FreezingMethod
from runner.patterns import HEAD
from runner.preflight import Rehearsal, Stage, pulls_of_flags, rehearse
from runner.replay import gradient
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
    cut: list[Group]  # the optimizer's groups, before the method has a say
    stages: list[Stage]  # the phases begun, with the groups of each
    optimizer: Optimizer
    device: torch.device
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
    couplings: list[str]
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
        phases = build_phases(config, selection)
        now = phases[0].selection
        hold_in_inference(now, undo)
        cut = cut_groups(config, model, selection)
        model = method.prepare(model, now, undo)
        groups = without_empty(method.groups(cut, now))
        if len(phases) > 1:
            groups = refined(groups, method.groups(cut, selection))
        optimizer = build_a(Optimizer, config.optimizer, "optimizer", [dict(group) for group in groups])
        line = Line(built, model, before, selection, phases, method, cut, [], optimizer, device, undo)
        line.stages.append(Stage(phases[0], groups, pulls_of_flags(line.parameters)))
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
        return Outcome(
            model=line.built,
            selection=line.selection,
            rows=report.rows,
            steps=steps,
            looks=report.looks,
            notes=[*line.notes, *report.notes],
            device=str(line.device),
            threads=torch.get_num_threads(),
            trained_digest=trained_digest(line.before, line.selection),
            couplings=couplings(line, config),
            interrupted=interrupted,
        )


def trained(line: Line, config: Config, report: Report, on_warning: Callable[[str], None] | None = None) -> Iterator[Step]:
    """The run's steps, phase by phase."""
    task, data = task_of(config, line.device), build(config.data, "data")
    scheduler = build_scheduler(config, line.optimizer)  # under the audit, which has to see the declared rates
    line.method.attach(line.optimizer, line.phases[0].selection, line.undo)
    seed_all(config.seed)
    batches = data.batches(config.batches, config.model.input, config.model.classes, config.seed)
    on_device = (to_device(batch, line.device) for batch in islice(batches, config.batches))
    done = 0
    for phase, count in spans(line.phases, config.batches):
        if done < phase.first - 1:
            line.notes.append(f"the data ended before step {phase.first}, from which on more was to be frozen")
            return
        if phase is not line.phases[0]:
            freeze_now(line, phase)
            report.freeze(phase.selection)
        if on_warning:
            warn(line, config, on_warning)
        how = scheduler, config.clip, config.zero_grad_to_none, phase.first
        for step in train(line.model, line.optimizer, task, islice(on_device, count), *how):
            done = step.number
            yield step


def freeze_now(line: Line, phase: Phase) -> None:
    """Begin a later phase: the method acts again, and the one optimizer is regrouped."""
    hold_in_inference(phase.selection, line.undo)
    line.model = line.method.prepare(line.model, phase.selection, line.undo)
    groups = line.method.groups(line.cut, phase.selection)
    regroup(line.optimizer, line.stages[-1].groups, groups)
    line.method.attach(line.optimizer, phase.selection, line.undo)
    line.stages.append(Stage(phase, groups, pulls_of_flags(line.parameters)))


def warn(line: Line, config: Config, on_warning: Callable[[str], None]) -> None:
    """Tell what would leak in the phases begun, by the scheduler's trace and the optimizer on dummy tensors."""
    if line.stages[-1].phase.selection.parameters:
        try:
            rehearsal = rehearsed(line, config)
        except (ConfigError, SkippedError):
            raise
        except Exception as error:  # of anyone's optimizer, built on other tensors than its own; the run itself will tell
            line.notes.append(f"what would leak could not be foreseen: {type(error).__name__}: {error}")
            return
        line.couples = rehearsal.couples
        for warning in leaks(rehearsal, *labels(line, config), FORESEEN_BY_FLAGS):
            on_warning(warning)


def couplings(line: Line, config: Config) -> list[str]:
    """Through what the frozen part's gradients reached the rest: `clip` (they are in the norm), `optimizer`."""
    pulled = any(gradient(tensor) == "present" for tensor in line.selection.parameters.values())
    return [*(["clip"] if pulled and config.clip is not None else []), *(["optimizer"] if line.couples else [])]


def rehearsed(line: Line, config: Config) -> Rehearsal:
    """The stages of a line, played by a double."""
    return rehearse(
        line.before.entries,
        line.stages,
        config.batches,
        line.method,
        lambda groups: build_a(Optimizer, config.optimizer, "optimizer", groups),
        lambda optimizer: build_scheduler(config, optimizer),
        config.zero_grad_to_none,
    )


def labels(line: Line, config: Config) -> tuple[str, str]:
    """What a method and an optimizer are called in a sentence."""
    method = type(line.method)
    ours = method.__module__.startswith("runner.methods.")
    return method.__module__.rpartition(".")[2] if ours else method.__name__, type(line.optimizer).__name__


def cut_groups(config: Config, model: nn.Module, selection: Selection) -> list[Group]:
    """The optimizer's groups as the config declares them, before the method has a say."""
    groups = build(config.groups.cut, "groups.cut", model, selection)
    return with_lrs(groups, model, selection, [(entry.pattern, entry.lr) for entry in config.groups.lr])


def task_of(config: Config, device: torch.device) -> Callable[[nn.Module, Any], Tensor]:
    """How a batch becomes a loss, in bfloat16 where the config says so."""
    task = build(config.task, "task")
    return in_bfloat16(task, device) if config.autocast else task


def build_scheduler(config: Config, optimizer: Optimizer) -> Any:
    """The learning rate's scheduler, or None."""
    scheduler = build(config.scheduler, "scheduler", optimizer) if config.scheduler else None
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise ConfigError(f"scheduler gave a {type(scheduler).__name__}; it must give something with a `step`")
    return scheduler


def build_phases(config: Config, selection: Selection) -> list[Phase]:
    """What is frozen when."""
    phases = build(config.schedule, "schedule", selection)
    if not isinstance(phases, list) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ConfigError(f"schedule gave a {type(phases).__name__}; it must give a list of runner.schedule.Phase")
    return phases


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

"""A checked config -> objects, up to the first step: the only place where the config meets what it declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.config.build import build, build_a
from runner.config.schema import Config
from runner.contract import Note, unheard
from runner.cost.meter import CountingMeter, Meter, TimingMeter
from runner.errors import ConfigError, SkippedError
from runner.freezing.eval_mode import hold_in_eval_mode
from runner.freezing.groups import Group, prepared_for, regroup, with_lrs, without_empty
from runner.freezing.patterns import HEAD
from runner.freezing.schedule import Phase
from runner.freezing.selection import Selection, find_head, select
from runner.methods.base import FreezingMethod
from runner.proof.changes import Snapshot, snapshot
from runner.seeding import machine, pick_device, seed_all
from runner.tensors import refuse_unless_dense
from runner.training.epochs import LazyBatch, drawn
from runner.training.tasks import in_bfloat16

Task = Callable[[nn.Module, Any], Tensor]


@dataclass
class Setup:
    """A run before its first step. `phases` say what is frozen when, `selection` what ever is."""

    config: Config
    device: torch.device
    built: nn.Module  # as the config declares it
    model: nn.Module  # as the method prepared it, to train
    before: Snapshot
    selection: Selection
    method: FreezingMethod
    cut: list[Group]  # the optimizer's groups, before the method has a say
    phases: list[Phase]  # those that have begun have groups
    optimizer: Optimizer
    meter: Meter
    undo: ExitStack
    note: Note

    @property
    def parameters(self) -> list[Tensor]:
        """Those of the model as built."""
        return [entry.tensor for entry in self.before.entries.values() if entry.kind == "parameter"]


@contextmanager
def assembled(config: Config, note: Note = unheard) -> Iterator[Setup]:
    """Build what the config declares, up to the first step; leaving it restores the model and the machine.

    Raises ConfigError for what the config got wrong, and SkippedError where the method cannot serve this model.
    """
    with ExitStack() as undo:
        undo.enter_context(machine(config.threads, config.deterministic))
        device = pick_device(config.device.value)
        seed_all(config.seed)
        built = build_a(nn.Module, config.model.build, "model.build").to(device)
        refuse_unless_dense(built)
        meter = build_meter(config, device, note)
        meter.on_model_built(built)
        for module in built.modules():
            undo.callback(setattr, module, "training", module.training)
        before = snapshot(built)
        selection = declared_selection(config, built)
        for text in selection.notes:
            note(text)
        method = build_a(FreezingMethod, config.method, "method")
        if reason := method.skip(built, selection):
            raise SkippedError(reason)
        phases = build_phases(config, selection)
        hold_in_eval_mode(phases[0].selection, undo)
        cut = cut_groups(config, built, selection)
        model = method.prepare(built, phases[0].selection, undo)
        phases[0] = replace(phases[0], groups=first_groups(phases, method, cut))
        yield Setup(
            config=config,
            device=device,
            built=built,
            model=model,
            before=before,
            selection=selection,
            method=method,
            cut=cut,
            phases=phases,
            optimizer=build_optimizer(config, phases[0].groups),
            meter=meter,
            undo=undo,
            note=note,
        )


def begin_phase(setup: Setup, number: int) -> Phase:
    """Begin a later phase, which then has groups: the method acts again, and the one optimizer is regrouped."""
    selection = setup.phases[number].selection
    hold_in_eval_mode(selection, setup.undo)
    setup.model = setup.method.prepare(setup.model, selection, setup.undo)
    phase = setup.phases[number] = replace(setup.phases[number], groups=tuple(setup.method.groups(setup.cut, selection)))
    regroup(setup.optimizer, setup.phases[number - 1].groups, phase.groups)
    setup.method.attach(setup.optimizer, selection, setup.undo)
    return phase


def declared_selection(config: Config, model: nn.Module) -> Selection:
    """What the config declares frozen; where the head is found by its number of outputs, a note says which it is."""
    freeze, head = config.freeze, config.model.head
    if head != "auto" or HEAD not in (*freeze.patterns, *freeze.keep):
        return select(model=model, patterns=freeze.patterns, keep=freeze.keep, buffers=freeze.buffers.value, head=head)
    head = find_head(model, config.model.classes)
    selection = select(model=model, patterns=freeze.patterns, keep=freeze.keep, buffers=freeze.buffers.value, head=head)
    return replace(selection, notes=(f"model.head=auto took {head} for the classifier", *selection.notes))


def build_phases(config: Config, selection: Selection) -> list[Phase]:
    """What is frozen when, without groups; raises ConfigError where the schedule gives anything but such phases."""
    phases = build(config.schedule, "schedule", selection)
    if not isinstance(phases, list) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ConfigError(f"schedule gave a {type(phases).__name__}; it must give a list of {Phase.__module__}.Phase")
    firsts = [phase.first for phase in phases]
    frozen = [set(phase.selection.parameters) for phase in phases]
    if firsts[0] != 1 or firsts != sorted(set(firsts)):
        raise ConfigError(f"schedule gave phases that begin at the steps {firsts}; they must begin at 1 and go up")
    if any(not before <= later for before, later in pairwise(frozen)):
        raise ConfigError(
            "schedule thaws what an earlier phase froze; each phase must freeze what the one before did, or more"
        )
    return phases


def cut_groups(config: Config, model: nn.Module, selection: Selection) -> list[Group]:
    """The optimizer's groups as the config declares them, before the method has a say."""
    groups = build(config.groups.cut, "groups.cut", model, selection)
    return with_lrs(groups, model, selection, [(entry.pattern, entry.lr) for entry in config.groups.lr])


def first_groups(phases: Sequence[Phase], method: FreezingMethod, cut: list[Group]) -> tuple[Group, ...]:
    """The groups that the method makes of the cut for the first phase, with those in it that only later ones fill."""
    first, *later = (method.groups(cut, phase.selection) for phase in phases)
    return tuple(prepared_for(later, without_empty(first)))


def build_optimizer(config: Config, groups: Sequence[Group]) -> Optimizer:
    """The optimizer over copies of these groups."""
    return build_a(Optimizer, config.optimizer, "optimizer", [dict(group) for group in groups])


def build_scheduler(config: Config, optimizer: Optimizer) -> Any:
    """The learning rate's scheduler, or None."""
    scheduler = build(config.scheduler, "scheduler", optimizer) if config.scheduler else None
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise ConfigError(f"scheduler gave a {type(scheduler).__name__}; it must give something with a `step`")
    return scheduler


def build_task(config: Config, device: torch.device) -> Task:
    """How a batch becomes a loss, in bfloat16 where the config says so."""
    task = build(config.task, "task")
    return in_bfloat16(task, device) if config.autocast else task


def build_batches(config: Config, device: torch.device) -> Iterator[LazyBatch]:
    """The batches of a run, pass after pass."""
    source = build(own_keys(config.data), "data")  # as the first is asked for
    batches = source.batches(config.batches, config.model.input, config.model.classes, config.seed)
    yield from drawn(batches, count=config.batches, epochs=config.epochs, seed=config.seed, device=device)


def own_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `data` that its source takes, which knows nothing of epochs."""
    return {key: value for key, value in data.items() if key != "epochs"}


def build_meter(config: Config, device: torch.device, note: Note) -> Meter:
    """The meter of `cost=off|count|time`."""
    kind = {"off": Meter, "count": CountingMeter, "time": TimingMeter}[config.cost.value]
    settings = ("task", "autocast", "method", "freeze", "schedule")
    return kind({"model": config.model.build} | {key: getattr(config, key) for key in settings}, device, note)

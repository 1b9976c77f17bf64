"""Build the objects of a run, up to its first step, from the checked config. No other module builds from the config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.assemble.feeding import Feed, build_task, open_feed
from runner.assemble.models import build_model, build_on_meta, declared_selection
from runner.assemble.objects import (
    build_groups,
    build_meter,
    build_optimizer,
    build_phases,
)
from runner.config.build import build_instance
from runner.config.schema import Config
from runner.contract import Note, ignore_note
from runner.cost.meter import Meter
from runner.errors import ConfigError, SkippedError, listed
from runner.freezing.eval_mode import force_eval_mode
from runner.freezing.groups import Group, drop_empty_groups, groups_for_all_phases, regroup
from runner.freezing.schedule import Phase
from runner.freezing.selection import Selection
from runner.freezing.trial.run import try_model
from runner.methods.base import Example, FreezingMethod
from runner.proof.changes import Snapshot, snapshot
from runner.seeding import machine_settings, pick_device, seed_all
from runner.tensors import map_tensors
from runner.training.data.reading import explained_worker_death
from runner.training.tasks.task import BatchTask
from runner.training.tasks.trained import TrainedTask
from runner.training.tasks.wording import described


@dataclass
class Setup:
    """The objects of a run, ready for its first step.

    Attributes:
        config: the checked config of the run.
        device: where the model is trained.
        built_model: the model as the config declares it.
        model: the model to train: `built_model` after the freezing method has prepared it, wrapped for example.
        before: a copy of all parameters and buffers of `built_model`, made before anything was frozen.
        selection: the parameters, buffers and modules that are to be frozen at some time of the run.
        method: how parameters are frozen, such as by `requires_grad`.
        declared_groups: the parameter groups as the config declares them; `method` derives the optimizer's groups from them.
        phases: spans of steps in which the same parameters are frozen. `groups` of a phase is set when it begins.
        optimizer: the optimizer of the whole run, with the groups of the first phase.
        task: the function (model, batch) -> loss.
        feed: the data: the first batch, all batches, and those held out.
        meter: measures the costs of a step, such as its FLOPs.
        undo: a stack of callbacks; closing it restores the model (except its values) and the process's settings.
        note: reports a message to the user.
    """

    config: Config
    device: torch.device
    built_model: nn.Module
    model: nn.Module
    before: Snapshot
    selection: Selection
    method: FreezingMethod
    declared_groups: list[Group]
    phases: list[Phase]
    optimizer: Optimizer
    task: TrainedTask
    feed: Feed
    meter: Meter
    undo: ExitStack
    note: Note

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters of `built_model`, frozen or not, each once."""
        return [entry.tensor for entry in self.before.entries.values() if entry.kind == "parameter"]


@contextmanager
def assembled(config: Config, note: Note = ignore_note, *, have_values: bool = True) -> Iterator[Setup]:
    """Build the model, optimizer and other objects that a config declares, and give them to the `with` block.

    When the block is left, the model (except its values) and the process's settings (threads, random state) are restored.
    `note` is called with messages for the user. `have_values`: False to build the model on the meta device, without values,
    for a plan. Raises ConfigError for a wrong config, and SkippedError if the freezing method does not fit this model.
    """
    with ExitStack() as undo:
        undo.enter_context(explained_worker_death())
        undo.enter_context(machine_settings(config.threads, config.deterministic))
        device = pick_device(config.device.value)
        seed_all(config.seed)
        built_model = (built := build_model(config, device, note) if have_values else build_on_meta(config, note)).model
        feed = open_feed(config, device, note, undo)
        config = feed.config
        (meter := build_meter(config, device, note)).on_model_built(built_model)
        keep_modes(built_model, undo)
        before = snapshot(built_model)
        example = example_for(built_model, (task := build_task(config, device)), feed)
        trial = partial(try_model, built_model, example.batch, task, classes=config.model.classes, copies=before.values)
        selection = declared_selection(config, built, note, trial)
        note_fields_left_out(task, built_model, feed.first, note)
        method = build_method(config, example, built_model, selection)
        phases = build_phases(config, selection)
        force_eval_mode(phases[0].selection, undo)
        declared_groups = build_groups(config, built_model, selection)
        model = prepared(method, built_model, phases[0].selection, undo)
        phases[0] = replace(phases[0], groups=groups_of_first_phase(phases, method, declared_groups))
        yield Setup(
            config=config,
            device=device,
            built_model=built_model,
            model=model,
            before=before,
            selection=selection,
            method=method,
            declared_groups=declared_groups,
            phases=phases,
            optimizer=build_optimizer(config, phases[0].groups),
            task=task,
            feed=feed,
            meter=meter,
            undo=undo,
            note=note,
        )


def note_fields_left_out(task: TrainedTask, model: nn.Module, batch: object, note: Note) -> None:
    """Call `note` with the tensors of a batch that the task gives neither to the model nor to the loss, if there are any."""
    names = task.task.left_out(model, batch) if isinstance(task.task, BatchTask) else []
    if names:
        fields = f"the field {names[0]}" if len(names) == 1 else f"the fields {listed(names)}"
        are = "it is" if len(names) == 1 else "they are"
        note(f"the model does not take {fields} of a batch: {are} left out")


def keep_modes(model: nn.Module, undo: ExitStack) -> None:
    """Give each module the mode that it has now, when `undo` is closed."""
    for module in model.modules():
        undo.callback(setattr, module, "training", module.training)


def example_for(model: nn.Module, task: TrainedTask, feed: Feed) -> Example:
    """Return the first batch with its task; the batch is moved to the meta device if the model is there."""
    example = Example(task, feed.first, feed.reread)
    if any(parameter.is_meta for parameter in model.parameters()):
        return replace(example, batch=map_tensors(example.batch, lambda tensor: tensor.to("meta")))
    return example


def build_method(config: Config, example: Example, model: nn.Module, selection: Selection) -> FreezingMethod:
    """Return the freezing method that the config declares. Raises SkippedError with its reason if it does not work here."""
    method = build_instance(FreezingMethod, config.method, "method")
    method.example = example
    if reason := method.skip(model, selection):
        raise SkippedError(reason)
    return method


def begin_phase(setup: Setup, number: int) -> Phase:
    """Begin a later phase of a run: freeze what the phase freezes, and return the phase with its parameter groups.

    A phase is a span of steps in which the same parameters are frozen. `number`: the index of the phase in `setup.phases`,
    at least 1, because `assembled` begins the first phase. The freezing method is applied to the model again, and parameters
    are moved between the groups of the existing optimizer. Changes `setup` in place.
    """
    selection = setup.phases[number].selection
    force_eval_mode(selection, setup.undo)
    setup.model = prepared(setup.method, setup.model, selection, setup.undo)
    groups = tuple(method_groups(setup.method, setup.declared_groups, selection))
    phase = setup.phases[number] = replace(setup.phases[number], groups=groups)
    regroup(setup.optimizer, setup.phases[number - 1].groups, phase.groups)
    setup.method.attach(setup.optimizer, selection, setup.undo)
    return phase


def prepared(method: FreezingMethod, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
    """Return the model that the method's `prepare` returns. Raises ConfigError if that is no module."""
    model = method.prepare(model, selection, undo)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"method: prepare returned {described(model)}; it must return the model to train")
    return model


def method_groups(method: FreezingMethod, groups: list[Group], selection: Selection) -> list[Group]:
    """Return the parameter groups that the method's `groups` returns. Raises ConfigError if that is no list of dicts."""
    returned = method.groups(groups, selection)
    if not isinstance(returned, list) or not all(isinstance(group, dict) and "params" in group for group in returned):
        raise ConfigError(
            f"method: groups returned {described(returned)}; it must return a list of parameter groups, "
            "dicts as torch.optim takes them"
        )
    return returned


def groups_of_first_phase(
    phases: Sequence[Phase], method: FreezingMethod, declared_groups: list[Group]
) -> tuple[Group, ...]:
    """Return the parameter groups with which the optimizer is built: the groups of the first phase.

    A phase is a span of steps in which the same parameters are frozen. Groups cannot be added during a run. A group that has
    parameters only in later phases is therefore included without parameters.
    """
    first, *later = (method_groups(method, declared_groups, phase.selection) for phase in phases)
    return tuple(groups_for_all_phases(drop_empty_groups(first), later))

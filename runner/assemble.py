"""Build the objects of a run, up to its first step, from the checked config. No other module builds from the config."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.config.build import build, build_function, build_instance, locate, locate_targets, names_function
from runner.config.schema import Config
from runner.contract import Note, ignore_note
from runner.cost.meter import CountingMeter, Meter
from runner.cost.timing import TimingMeter
from runner.errors import ConfigError, SkippedError
from runner.freezing.eval_mode import force_eval_mode
from runner.freezing.groups import Group, drop_empty_groups, groups_for_all_phases, regroup, split_by_lr
from runner.freezing.names import find_head
from runner.freezing.patterns import HEAD
from runner.freezing.schedule import Phase
from runner.freezing.selection import Selection, select
from runner.freezing.words import FOR_CONFIG
from runner.methods.base import Example, FreezingMethod
from runner.proof.changes import Snapshot, snapshot
from runner.seeding import machine_settings, pick_device, seed_all
from runner.tensors import map_tensors, refuse_unless_dense
from runner.training.epochs import iterate_epochs
from runner.training.loop import Task
from runner.training.tasks.task import BatchTask
from runner.training.tasks.wording import described
from runner.training.tasks.wrappers import scalar_loss, with_autocast


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
        first_batch: the batch of the first step, on the device of the model; None if the data has none.
        batches: all batches of the run, the first included; each can be taken once.
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
    task: Task
    first_batch: Any
    batches: Iterator[Any]
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
    for a plan. Raises ConfigError for a wrong config, and SkippedError if the freezing method does
    not work with this model.
    """
    with ExitStack() as undo:
        undo.enter_context(machine_settings(config.threads, config.deterministic))
        device = pick_device(config.device.value)
        seed_all(config.seed)
        built_model = build_model(config, device) if have_values else build_on_meta(config)
        (meter := build_meter(config, device, note)).on_model_built(built_model)
        for module in built_model.modules():
            undo.callback(setattr, module, "training", module.training)
        before = snapshot(built_model)
        selection = declared_selection(config, built_model, note)
        method = build_instance(FreezingMethod, config.method, "method")
        batches = build_batches(config, device)
        first = next(batches, None)
        task = build_task(config, device)
        if first is not None:
            probe = first if have_values else map_tensors(first, lambda tensor: tensor.to("meta"))
            method.example = Example(task, probe)
        if reason := method.skip(built_model, selection):
            raise SkippedError(reason)
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
            first_batch=first,
            batches=chain([] if first is None else [first], batches),
            meter=meter,
            undo=undo,
            note=note,
        )


def build_model(config: Config, device: torch.device) -> nn.Module:
    """Return the model that the config declares, on the device. Raises ConfigError if its tensors cannot be compared."""
    model = build_instance(nn.Module, config.model.build, "model.build").to(device)
    refuse_unless_dense(model)
    return model


def build_on_meta(config: Config) -> nn.Module:
    """Return the model that the config declares with all its tensors on the meta device, where they have no values."""
    locate_targets(config.model.build, "model.build")  # what a module makes when it is imported has values
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that a builder loads: they stay without values
        return build_instance(nn.Module, config.model.build, "model.build")


def check_patterns(configs: Sequence[Config]) -> None:
    """Raise the ConfigError of the first config if none has patterns that fit the model, which must be the same in all."""
    with machine_settings(configs[0].threads, configs[0].deterministic):
        seed_all(configs[0].seed)
        model = build_instance(nn.Module, configs[0].model.build, "model.build")
        errors = []
        for config in configs:
            try:
                build_groups(config, model, declared_selection(config, model, ignore_note))
                return
            except ConfigError as error:
                errors.append(error)
    raise errors[0]


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


def declared_selection(config: Config, model: nn.Module, note: Note) -> Selection:
    """Return the parameters, buffers and modules that the config declares frozen.

    In patterns, `@head` stands for the classifier. If a pattern is `@head` and the config has `model.head=auto`, the
    classifier is found automatically. `note` is called with each message in the `notes` of the returned Selection, one of
    which names the classifier that was found.
    """
    freeze, head = config.freeze, config.model.head
    notes: tuple[str, ...] = ()
    if head == "auto" and HEAD in (*freeze.patterns, *freeze.keep):
        head = find_head(model, config.model.classes)
        notes = (f"model.head=auto found the classifier {head}",)
    selection = select(model, freeze.patterns, keep=freeze.keep, buffers=freeze.buffers.value, head=head, words=FOR_CONFIG)
    selection = replace(selection, notes=(*notes, *selection.notes))
    for text in selection.notes:
        note(text)
    return selection


def build_phases(config: Config, selection: Selection) -> list[Phase]:
    """Call the config's schedule and return its phases: spans of steps in which the same parameters are frozen.

    `selection`: what the config declares frozen. The field `groups` of each returned Phase (the optimizer's parameter
    groups) is still empty. Raises ConfigError if the schedule does not return a list of Phase, if the first phase does not
    begin at step 1, if a phase does not begin later than the one before it, or if a phase unfreezes a parameter.
    """
    phases = build(config.schedule, "schedule", selection)
    if not isinstance(phases, list) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ConfigError(f"schedule returned a {type(phases).__name__}; it must return a list of {Phase.__module__}.Phase")
    firsts = [phase.first for phase in phases]
    frozen_names = [set(phase.selection.parameters) for phase in phases]
    if firsts[0] != 1 or firsts != sorted(set(firsts)):
        raise ConfigError(f"schedule returned phases that begin at steps {firsts}; they must begin at 1 and go up")
    if any(not earlier <= later for earlier, later in pairwise(frozen_names)):
        raise ConfigError(
            "schedule unfreezes what an earlier phase froze; each phase must freeze what the one before did, or more"
        )
    return phases


def build_groups(config: Config, model: nn.Module, selection: Selection) -> list[Group]:
    """Return the parameter groups as the config declares them: built by `groups.cut`, with learning rates from `groups.lr`.

    The freezing method may later derive the optimizer's groups from these. `selection`: what the config declares frozen.
    """
    groups = build(config.groups.cut, "groups.cut", model, selection)
    return split_by_lr(groups, model, selection, [(entry.pattern, entry.lr) for entry in config.groups.lr])


def groups_of_first_phase(
    phases: Sequence[Phase], method: FreezingMethod, declared_groups: list[Group]
) -> tuple[Group, ...]:
    """Return the parameter groups with which the optimizer is built: the groups of the first phase.

    A phase is a span of steps in which the same parameters are frozen. Groups cannot be added during a run. A group that has
    parameters only in later phases is therefore included without parameters.
    """
    first, *later = (method_groups(method, declared_groups, phase.selection) for phase in phases)
    return tuple(groups_for_all_phases(drop_empty_groups(first), later))


def build_optimizer(config: Config, groups: Sequence[Group]) -> Optimizer:
    """Return the optimizer that the config declares, built with copies of the given parameter groups."""
    return build_instance(Optimizer, config.optimizer, "optimizer", [dict(group) for group in groups])


def build_scheduler(config: Config, optimizer: Optimizer) -> Any:
    """Return the learning rate scheduler that the config declares, or None if it declares none.

    Raises ConfigError if the scheduler has no method `step`.
    """
    scheduler = build(config.scheduler, "scheduler", optimizer) if config.scheduler else None
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise ConfigError(f"scheduler is a {type(scheduler).__name__}; it must be an object with a method `step`")
    return scheduler


def build_task(config: Config, device: torch.device) -> Task:
    """Return the config's loss function, (model, batch) -> loss. With `autocast=true`, it runs the model in bfloat16."""
    task = partial(scalar_loss, declared_task(config.task))
    return with_autocast(task, device) if config.autocast else task


def declared_task(options: Mapping[str, Any]) -> Task:
    """Return the task that the node `task` of the config declares. Raises ConfigError if it is no function.

    The files in `conf/task` have all options of BatchTask; a task of the user's own is not given those that are not set.
    """
    node = dict(options)
    if locate(node["_target_"], "task._target_") is BatchTask:
        if names_function(loss := node.get("loss")):
            node["loss"] = build_function(loss, "task.loss")
    else:
        unset = {name: each.default for name, each in signature(BatchTask).parameters.items()}
        node = {name: value for name, value in node.items() if name not in unset or value != unset[name]}
    task: Task = build_function(node, "task")
    if not callable(task):
        raise ConfigError(f"task gives {described(task)}; it must give a function (model, batch) -> loss")
    return task


def build_batches(config: Config, device: torch.device) -> Iterator[Any]:
    """Yield the batches of all epochs of a run. The data source is built when the first batch is requested."""
    source = build(source_options(config.data), "data")
    if not callable(getattr(source, "batches", None)):
        raise ConfigError(
            f"data is a {type(source).__name__}; its class needs a method batches(count, input, classes, seed)"
        )
    batches = source.batches(config.batches, config.model.input, config.model.classes, config.seed)
    if not isinstance(batches, Iterable):
        raise ConfigError(f"data: batches(...) returned {described(batches)}; it must yield batches, such as pairs (x, y)")
    for lazy in iterate_epochs(batches, count=config.batches, epochs=config.epochs, seed=config.seed, device=device):
        yield lazy.batch


def source_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the data source: the node `data` of the config without `epochs`."""
    return {key: value for key, value in data.items() if key != "epochs"}


def build_meter(config: Config, device: torch.device, note: Note) -> Meter:
    """Return the object that measures the costs of a step, as `cost` in the config asks for.

    `off` measures nothing, `count` FLOPs and bytes, `time` seconds too. `note` is called with messages for the user.
    """
    meter_class = {"off": Meter, "count": CountingMeter, "time": TimingMeter}[config.cost.value]
    settings = ("task", "autocast", "method", "freeze", "schedule")
    return meter_class({"model": config.model.build} | {key: getattr(config, key) for key in settings}, device, note)

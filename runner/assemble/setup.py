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
from runner.assemble.models import BuiltModel, build_model, build_on_meta, declared_selection
from runner.assemble.objects import (
    build_meter,
)
from runner.assemble.phases import (
    begin_first_phase,
    build_plan,
    selections_to_check,
)
from runner.assemble.sharing import build_shared_prefix, first_weights, sharing_of
from runner.config.build import build_instance
from runner.config.schema import Config
from runner.contract import Note, ignore_note
from runner.cost.meter import Meter
from runner.errors import SkippedError, listed
from runner.freezing.groups import Group
from runner.freezing.phases.factors import RateFactors
from runner.freezing.phases.phase import Run
from runner.freezing.schedule import Phase, Plan
from runner.freezing.selection import Selection
from runner.freezing.trial.run import try_model
from runner.methods.base import Example, FreezingMethod
from runner.methods.prefix.shared.feed import SharedPrefix
from runner.proof.changes import Snapshot, snapshot
from runner.seeding import machine_settings, pick_device, seed_all
from runner.sharing.folder import SharedFolder, Sharing
from runner.tensors import map_tensors
from runner.training.data.reading import explained_worker_death
from runner.training.tasks.task import BatchTask
from runner.training.tasks.trained import TrainedTask


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
        plan: what the schedule says about the whole run.
        phases: the phases of the plan, and those that are found during the run. `groups` of a phase is set when it begins.
        optimizer: the optimizer of the whole run; its groups are those of the present phase.
        factors: multiplies the learning rates of blocks in the steps of a phase.
        task: the function (model, batch) -> loss.
        feed: the data: the first batch, all batches, and those held out.
        meter: measures the costs of a step, such as its FLOPs.
        phase_undo: a stack of callbacks; closing it undoes what the method did for the present phase.
        undo: a stack of callbacks; closing it closes `phase_undo`, and restores the model (except its values) and the
            process's settings.
        note: reports a message to the user.
        shared_prefix: lets steps use outputs of frozen first layers that other runs of the sweep have computed.
    """

    config: Config
    device: torch.device
    built_model: nn.Module
    model: nn.Module
    before: Snapshot
    selection: Selection
    method: FreezingMethod
    declared_groups: list[Group]
    plan: Plan
    phases: list[Phase]
    optimizer: Optimizer
    factors: RateFactors
    task: TrainedTask
    feed: Feed
    meter: Meter
    phase_undo: ExitStack
    undo: ExitStack
    note: Note
    shared_prefix: SharedPrefix

    @property
    def made_groups(self) -> set[str]:
        """The names of the groups that the method made of the declared ones, such as those with a learning rate of 0."""
        return {group["name"] for group in self.phases[0].groups} - {group["name"] for group in self.declared_groups}

    @property
    def parameters_by_name(self) -> dict[str, Tensor]:
        """{name: parameter} of `built_model`, frozen or not, each once."""
        return {name: entry.tensor for name, entry in self.before.entries.items() if entry.kind == "parameter"}

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters of `built_model`, frozen or not, each once."""
        return list(self.parameters_by_name.values())


@contextmanager
def assembled(
    config: Config, note: Note = ignore_note, *, have_values: bool = True, shared: SharedFolder | None = None
) -> Iterator[Setup]:
    """Build the model, optimizer and other objects that a config declares, and give them to the `with` block.

    When it is left, the model (except its values) and the process's settings (threads, random state) are restored. `note` is
    called with messages for the user. `have_values`: False to build the model on the meta device, for a plan. `shared`: what
    the runs of a sweep compute once. Raises ConfigError for a wrong config, SkippedError if the method does not fit.
    """
    with ExitStack() as undo:
        device = prepare_process(config, undo)
        built = built_with_values(config, device, note, shared) if have_values else build_on_meta(config, note)
        config, built_model = (feed := open_feed(config, device, note, undo)).config, built.model
        shared_prefix = build_shared_prefix(config, sharing := sharing_of(config, shared, device))
        meter = build_meter(config, device, built_model, note, sharing=sharing, skips_layers=shared_prefix.is_tried)
        keep_modes(built_model, undo)
        before = snapshot(built_model)
        example = example_for(built_model, (task := build_task(config, device)), feed, note)
        trial = partial(try_model, built_model, example.batch, task, classes=config.model.classes, copies=before.values)
        selection = declared_selection(config, built, note, trial)
        plan = build_plan(config, selection, run_of(config, built_model, feed))
        checked = selections_to_check(plan, selection, built_model)
        method = build_method(config, example, built_model, checked, sharing=sharing)
        begun = begin_first_phase(config, plan, method, built_model, selection=selection, undo=undo)
        yield Setup(
            config=config,
            device=device,
            built_model=built_model,
            model=begun.model,
            before=before,
            selection=selection,
            method=method,
            declared_groups=begun.declared_groups,
            plan=plan,
            phases=[begun.phase, *plan.phases[1:]],
            optimizer=begun.optimizer,
            factors=begun.factors,
            task=task,
            feed=feed,
            meter=meter,
            phase_undo=begun.undo,
            undo=undo,
            note=note,
            shared_prefix=shared_prefix,
        )


def built_with_values(config: Config, device: torch.device, note: Note, shared: SharedFolder | None) -> BuiltModel:
    """Return the model that the config declares; in a sweep, the random numbers of equal first weights are drawn once."""
    with first_weights(shared):
        return build_model(config, device, note)


def prepare_process(config: Config, undo: ExitStack) -> torch.device:
    """Set what the config says about the process, until `undo` is closed, and its random state; return the device."""
    undo.enter_context(explained_worker_death())
    undo.enter_context(machine_settings(config.threads, config.deterministic))
    device = pick_device(config.device.value)
    seed_all(config.seed)
    return device


def note_fields_left_out(task: TrainedTask, model: nn.Module, batch: object, note: Note) -> None:
    """Call `note` with the tensors of a batch that the task gives neither to the model nor to the loss, if there are any."""
    names = task.task.left_out(model, batch) if isinstance(task.task, BatchTask) else []
    if names:
        fields = f"the field {names[0]}" if len(names) == 1 else f"the fields {listed(names)}"
        are = "it is" if len(names) == 1 else "they are"
        note(f"the model does not take {fields} of a batch: {are} left out")


def run_of(config: Config, model: nn.Module, feed: Feed) -> Run:
    """Return what a schedule may ask of the run."""
    return Run(model, config.steps, config.steps_a_pass, config.seed, is_length_known=feed.is_length_known)


def keep_modes(model: nn.Module, undo: ExitStack) -> None:
    """Give each module the mode that it has now, when `undo` is closed."""
    for module in model.modules():
        undo.callback(setattr, module, "training", module.training)


def example_for(model: nn.Module, task: TrainedTask, feed: Feed, note: Note) -> Example:
    """Return the first batch with its task, and note what the task leaves out; the batch is moved to meta with the model."""
    note_fields_left_out(task, model, feed.first, note)
    example = Example(task, feed.first, feed.reread)
    if any(parameter.is_meta for parameter in model.parameters()):
        return replace(example, batch=map_tensors(example.batch, lambda tensor: tensor.to("meta")))
    return example


def build_method(
    config: Config, example: Example, model: nn.Module, selections: Sequence[Selection], *, sharing: Sharing
) -> FreezingMethod:
    """Return the freezing method that the config declares; it is given the training step to try, and what is shared.

    Raises SkippedError with its reason if it cannot freeze one of the selections in this model.
    """
    method = build_instance(FreezingMethod, config.method, "method")
    method.example, method.sharing = example, sharing
    for selection in selections:
        refuse_selection(method, model, selection)
    return method


def refuse_selection(method: FreezingMethod, model: nn.Module, selection: Selection) -> None:
    """Raise SkippedError with the method's reason if it cannot freeze a selection in this model."""
    if reason := method.skip(model, selection):
        raise SkippedError(reason)

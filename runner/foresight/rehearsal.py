"""Rehearse a run: predict which tensors would change, by training a small stand-in for the model.

The stand-in has a few elements of each tensor. Optimizer, scheduler and freezing method are those of the run. Its loss gives
gradients to the same parameters as a real batch would, and its forward pass changes the same tensors. The audit, which
compares the bits of all tensors before and after a run, does so here too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import Row
from runner.foresight.effects import Effect
from runner.freezing.groups import Group, group_lr, regroup
from runner.freezing.schedule import Phase
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod
from runner.methods.grad_none import drop_gradient
from runner.proof.audit import audit
from runner.proof.causes.replay import frozen_gradients_affect_others
from runner.seeding import preserve_random_state
from runner.tensors import TensorEntry
from runner.training.loop import Step, Task, train

FULL_STEPS = 32  # of each phase (span of steps with the same frozen layers); for later steps, only the scheduler is called
LearningRates = dict[int, dict[str, float]]  # {step number: {parameter group name: learning rate}}


@dataclass
class Rehearsal:
    """The predictions for a run, made by training a small stand-in for its model.

    Attributes:
        phases: the spans of steps that were simulated; in each of them the same layers are frozen.
        rows: for each parameter and buffer of the model, a dict that says whether it would change and why.
        lrs: {step number: {parameter group name: learning rate}}.
        scheduler: the learning rate scheduler that was used, or None.
        optimizer_couples: whether gradients of frozen parameters change how the optimizer updates the other parameters, as
            under LBFGS.
    """

    phases: Sequence[Phase]
    rows: list[Row]
    lrs: LearningRates
    scheduler: Any
    optimizer_couples: bool


class StandInModel(nn.Module):
    """A small model for simulating a training: for each tensor of the real model it has a stand-in of a few elements.

    Attributes:
        stand_in_of: {id of a tensor of the real model: its stand-in}.
        initial_of: {id of a tensor of the real model: copy of its stand-in's initial values}.
        by_name: {name of a tensor of the real model: its stand-in}.
    """

    def __init__(self, model_entries: Mapping[str, TensorEntry]) -> None:
        super().__init__()
        self.stand_in_of: dict[int, Tensor] = {}
        self.initial_of: dict[int, Tensor] = {}
        self.by_name: dict[str, Tensor] = {}
        for name, entry in model_entries.items():
            values = _few_elements(entry.tensor.detach())
            registry: Any = self._parameters if entry.kind == "parameter" else self._buffers
            stand_in = nn.Parameter(values) if entry.kind == "parameter" and values.is_floating_point() else values
            self.initial_of[id(entry.tensor)] = values.clone()
            registry[name.replace(".", "/")] = stand_in  # dots would mean submodules, which the stand-in does not have
            self.stand_in_of[id(entry.tensor)] = self.by_name[name] = stand_in

    def forward(self, step: int, effect: Effect) -> Tensor:
        """Return a loss that gives the same parameters a gradient as a real batch does.

        The loss is half the squared distance of the stand-in parameters to a random point; `step` is the random seed.
        `effect`: what a real batch does. A parameter to which a real batch gives no gradient is left out of the loss. If all
        elements of its gradient are 0, they are 0 here too. The stand-ins of the tensors in `effect.written` are changed.
        """
        generator = torch.Generator().manual_seed(step)
        terms = [torch.zeros((), requires_grad=True)]
        for tensor_id, stand_in in self.stand_in_of.items():
            if effect.gradients.get(tensor_id, "untouched") != "untouched" and stand_in.requires_grad:
                target = self.initial_of[tensor_id] + torch.randn(stand_in.shape, generator=generator).to(stand_in)
                weight = 0.0 if effect.gradients[tensor_id] == "zero" else 0.5
                terms.append(weight * (stand_in - target).abs().square().sum().float().cpu())
        with torch.no_grad():
            for name in effect.written & self.by_name.keys():
                value = self.by_name[name]
                value.copy_(~value if value.dtype is torch.bool else value + value.abs() + 1)
        return torch.stack(terms).sum()

    def map_selection(self, selection: Selection) -> Selection:
        """Return a copy of `selection` in which stand-ins replace the parameters and buffers, and which has no modules."""
        parameters, buffers = (
            {name.replace(".", "/"): self.stand_in_of[id(t)] for name, t in tensors.items() if id(t) in self.stand_in_of}
            for tensors in (selection.parameters, selection.buffers)
        )
        return replace(selection, parameters=parameters, buffers=buffers, modules={})

    def map_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Return copies of the optimizer's parameter groups that have stand-ins in place of the real parameters."""
        return [
            {**group, "params": [self.stand_in_of[id(p)] for p in group["params"] if id(p) in self.stand_in_of]}
            for group in groups
        ]


def rehearse(
    model_entries: Mapping[str, TensorEntry],  # the tensors of the real model, by name
    phases: Sequence[Phase],  # spans of steps with the same frozen layers
    effects: Sequence[Effect],  # what a real batch does in each phase
    *,
    batches: int,  # the number of steps of the run
    method: FreezingMethod,
    build_optimizer: Callable[[list[Group]], Optimizer],
    build_scheduler: Callable[[Optimizer], Any],
    zero_grad_to_none: bool,
) -> Rehearsal:
    """Simulate the steps of a run on a small stand-in for its model, and return which tensors of the model would change.

    Leaves the random state as it is. Raises what the optimizer, scheduler or freezing method raises.
    """
    method = copy.copy(method)  # a method that stores its optimizer must not store this one
    with preserve_random_state(), ExitStack() as undo:
        equivalents = group_equivalent(model_entries, phases, effects)
        stand_in = StandInModel({name: members[0] for name, members in equivalents.items()})
        optimizer = build_optimizer([dict(group) for group in stand_in.map_groups(phases[0].groups)])
        frozen = stand_in.map_selection(phases[0].selection)
        lrs: LearningRates = {}
        restore_lrs = ExitStack()
        with audit(stand_in, frozen, optimizer, watch_forward=True) as report:
            scheduler = build_scheduler(optimizer)
            for number, (phase, effect) in enumerate(zip(phases, effects, strict=True)):
                restore_lrs.close()
                if number:
                    frozen = stand_in.map_selection(phase.selection)
                    regroup(optimizer, stand_in.map_groups(phases[number - 1].groups), stand_in.map_groups(phase.groups))
                    report.freeze(frozen)
                method.attach(optimizer, frozen, undo)
                for tensor_id, tensor in stand_in.stand_in_of.items():
                    if effect.gradients.get(tensor_id) == "dropped":
                        undo.callback(tensor.register_post_accumulate_grad_hook(drop_gradient).remove)
                last = phases[number + 1].first - 1 if number + 1 < len(phases) else batches
                train_steps = partial(train, stand_in, optimizer, _task_of(effect), zero_grad_to_none=zero_grad_to_none)
                lrs |= _run_phase(train_steps, optimizer, scheduler, range(phase.first, last + 1), restore_lrs=restore_lrs)
        optimizer_couples = False
        stand_in.zero_grad()
        stand_in(batches + 1, replace(effects[-1], written=frozenset())).backward()
        with suppress(Exception):  # if the step cannot be replayed, this is not known
            optimizer_couples = frozen_gradients_affect_others(optimizer, list(frozen.parameters.values()))
    rows = _rows_of_model(report.rows, model_entries, equivalents)
    return Rehearsal(phases=phases, rows=rows, lrs=lrs, scheduler=scheduler, optimizer_couples=optimizer_couples)


def _rows_of_model(
    rows: list[Row], model_entries: Mapping[str, TensorEntry], equivalents: Mapping[str, list[TensorEntry]]
) -> list[Row]:
    """Return a row (a dict that says whether a tensor changed, and why) for each tensor of the real model.

    `rows`: the rows of the stand-ins. `model_entries`: {name: tensor of the real model}. `equivalents`: {name of a stand-in:
    the tensors of the real model that it represents}; each of these tensors gets a copy of the stand-in's row.
    """
    row_of_stand_in = {row["name"].replace("/", "."): row for row in rows}
    row_of = {entry.name: row_of_stand_in[name] for name, members in equivalents.items() for entry in members}
    return [{**row_of[name], "name": name, "module_type": entry.module_type} for name, entry in model_entries.items()]


def _run_phase(
    train_steps: Callable[..., Iterator[Step]], optimizer: Optimizer, scheduler: Any, steps: range, *, restore_lrs: ExitStack
) -> LearningRates:
    """Simulate the steps of one phase; return {step number: {parameter group name: learning rate}}.

    The first FULL_STEPS steps are carried out by `train_steps`, which trains the stand-in. For the other steps only the
    scheduler is called, to record the learning rates. Then one more training step follows, in which each parameter group has
    the highest of its recorded rates: a tensor that changes at a lower rate also changes at this one. Closing `restore_lrs`
    sets the rates back. It stays open at first, so that the audit can repeat the last step to find why a frozen tensor
    changed.
    """
    full_steps, other_steps = steps[:FULL_STEPS], steps[FULL_STEPS:]
    lrs = {step.number: step.lrs for step in train_steps(full_steps, scheduler=scheduler, first=steps.start)}
    if scheduler is None or not other_steps:
        return lrs
    for number in other_steps:
        lrs[number] = {group["name"]: group_lr(group) for group in optimizer.param_groups}
        scheduler.step(*([0.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
    for group in (group for group in optimizer.param_groups if "lr" in group):
        restore_lrs.callback(group.__setitem__, "lr", group["lr"])
        group["lr"] = max(lrs[number][group["name"]] for number in other_steps)
    for _ in train_steps(other_steps[-1:]):
        pass
    return lrs


def _task_of(effect: Effect) -> Task:
    """Return the loss function for the training loop: a function (stand-in model, step number) -> loss.

    `effect`: what a real batch does; the loss has the same effect on the stand-in model.
    """
    return lambda stand_in, step: stand_in(step, effect)


def _few_elements(tensor: Tensor) -> Tensor:
    """Return a small tensor with copies of a few elements; each dimension has the size of the original, but at most 2.

    The elements are the first ones of the flattened tensor. If one of these first elements is 0, and the tensor has any
    element that is not 0, the elements of largest absolute value are taken instead.
    """
    shape = _cut_shape(tensor)
    flat, count = tensor.reshape(-1), shape.numel()
    chosen = flat[:count]
    if _has_nonzero(tensor) and not bool(chosen.all()):
        chosen = flat[(flat if flat.is_complex() else flat.float()).abs().topk(count).indices]
    return chosen.reshape(shape).clone()


def _cut_shape(tensor: Tensor) -> torch.Size:
    """Return the tensor's shape with every size above 2 replaced by 2."""
    return torch.Size(min(2, size) for size in tensor.shape)


def _has_nonzero(tensor: Tensor) -> bool:
    """Return whether any element of the tensor is not 0.

    To save time, the whole tensor is read only if its first 64 elements are all 0.
    """
    flat = tensor.detach().reshape(-1)
    return bool(flat[:64].any()) or bool(flat.any())


def group_equivalent(
    model_entries: Mapping[str, TensorEntry], phases: Sequence[Phase], effects: Sequence[Effect]
) -> dict[str, list[TensorEntry]]:
    """Group the tensors for which a simulated training gives the same result, so that one stand-in serves a whole group.

    Returns {name of the group's first tensor: all tensors of the group}. `model_entries`: {name: tensor of the real model}.
    `phases`: spans of steps with the same frozen layers. `effects`: for each phase, which tensors get a gradient from a
    batch, and which ones the forward pass changes.

    A stand-in is a small tensor that takes the place of a real one in the simulation. All tensors of a group are of the same
    kind (parameter or buffer), have the same dtype, and get stand-ins of the same shape. A tensor of zeros only is never in
    a group with one that has other values. In each phase, all tensors of a group are frozen or none is, all are in the same
    parameter group of the optimizer, and `effects` says the same of all.
    """
    group_names = [{id(p): group["name"] for group in phase.groups for p in group["params"]} for phase in phases]
    equivalents: dict[Any, list[TensorEntry]] = {}
    for name, entry in model_entries.items():
        tensor, tensor_id = entry.tensor, id(entry.tensor)
        of_each_phase = zip(
            (tensor in phase.selection or name in phase.selection.buffers for phase in phases),
            (names.get(tensor_id) for names in group_names),
            (effect.gradients.get(tensor_id) for effect in effects),
            (name in effect.written for effect in effects),
            strict=True,
        )
        key = (entry.kind, tensor.dtype, _cut_shape(tensor), _has_nonzero(tensor), *of_each_phase)
        equivalents.setdefault(key, []).append(entry)
    return {members[0].name: members for members in equivalents.values()}

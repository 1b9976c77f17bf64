"""Predict what would move by running the optimizer, scheduler and method of a run on a small stand-in for its model.

The stand-in has a few elements for each tensor of the model. Its loss gives gradients to the same parameters as a batch does
in the model, its forward pass writes to the same tensors, and the audit watches it as it will watch the run.
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
from runner.foresight.effects import Effect, Task
from runner.freezing.groups import Group, group_lr, regroup
from runner.freezing.schedule import Phase
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod
from runner.proof.audit import audit
from runner.proof.replay import frozen_gradients_affect_others
from runner.seeding import preserve_random_state
from runner.tensors import TensorEntry
from runner.training.loop import Step, train

FULL_STEPS = 32  # at most so many steps of a phase are run; for the later ones only the scheduler is stepped
LearningRates = dict[int, dict[str, float]]  # by step number and name of the parameter group


@dataclass
class Rehearsal:
    """What is predicted for a run.

    Attributes:
        phases: the phases that were rehearsed.
        rows: the rows of an audit, one for each tensor of the model.
        lrs: the learning rate of each parameter group at each step.
        scheduler: the scheduler that was used, or None.
        optimizer_couples: whether gradients of frozen parameters change how the optimizer updates the others (LBFGS).
    """

    phases: Sequence[Phase]
    rows: list[Row]
    lrs: LearningRates
    scheduler: Any
    optimizer_couples: bool


class StandInModel(nn.Module):
    """A module with a few elements of each tensor of a model; its forward pass returns the loss of a step.

    Attributes:
        stand_in_of: the stand-in of each tensor, by the id of the model's tensor.
        initial_of: a copy of the stand-in's initial values, by the same id.
        by_name: the stand-ins, by the name of the model's tensor.
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
        """Return half the squared distance to a random point, another one at each step, as the loss.

        Only parameters to which `effect` gives a gradient are in the loss; the tensors in `effect.written` are changed.
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
        """Return a selection of the stand-ins of the selected tensors."""
        parameters, buffers = (
            {name.replace(".", "/"): self.stand_in_of[id(t)] for name, t in tensors.items() if id(t) in self.stand_in_of}
            for tensors in (selection.parameters, selection.buffers)
        )
        return replace(selection, parameters=parameters, buffers=buffers, modules={})

    def map_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Return the parameter groups with the stand-ins of their parameters."""
        return [
            {**group, "params": [self.stand_in_of[id(p)] for p in group["params"] if id(p) in self.stand_in_of]}
            for group in groups
        ]


def rehearse(
    model_entries: Mapping[str, TensorEntry],
    phases: Sequence[Phase],
    effects: Sequence[Effect],
    *,
    batches: int,
    method: FreezingMethod,
    build_optimizer: Callable[[list[Group]], Optimizer],
    build_scheduler: Callable[[Optimizer], Any],
    zero_grad_to_none: bool,
) -> Rehearsal:
    """Run the phases on a stand-in for the model; in each phase, every batch has the effect of the same position.

    Draws no random numbers. Raises what the optimizer, scheduler or method raises.
    """
    method = copy.copy(method)  # a method that stores its optimizer must not store this one
    with preserve_random_state(), ExitStack() as undo:
        equivalents = group_equivalent(model_entries, phases, effects)
        stand_in = StandInModel({name: members[0] for name, members in equivalents.items()})
        optimizer = build_optimizer([dict(group) for group in stand_in.map_groups(phases[0].groups)])
        frozen = stand_in.map_selection(phases[0].selection)
        lrs: LearningRates = {}
        restore_lrs = ExitStack()
        with audit(stand_in, frozen, optimizer) as report:
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
                        undo.callback(tensor.register_post_accumulate_grad_hook(_drop_gradient).remove)
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
    """Return a row for each tensor of the model: that of the stand-in for all tensors equivalent to it."""
    row_of_stand_in = {row["name"].replace("/", "."): row for row in rows}
    row_of = {entry.name: row_of_stand_in[name] for name, members in equivalents.items() for entry in members}
    return [{**row_of[name], "name": name, "module_type": entry.module_type} for name, entry in model_entries.items()]


def _run_phase(
    train_steps: Callable[..., Iterator[Step]], optimizer: Optimizer, scheduler: Any, steps: range, *, restore_lrs: ExitStack
) -> LearningRates:
    """Run the steps of one phase; return the learning rates of the groups at each step.

    At most FULL_STEPS are run. For the others only the scheduler is stepped; then the optimizer makes one step with each
    group at the highest learning rate it had meanwhile, because what moves at any of them moves at the highest. This rate
    stays until `restore_lrs` is closed, because a leak that is found at the end is replayed for its cause.
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
    """Return a task for the training loop that calls the stand-in; its batches are step numbers."""
    return lambda stand_in, step: stand_in(step, effect)


def _few_elements(tensor: Tensor) -> Tensor:
    """Return a copy of a few elements as a tensor with as many dimensions, each of size 2 at most.

    They are the first ones, or the largest ones if some of the first are 0 and not all elements are.
    """
    shape = [min(2, size) for size in tensor.shape]
    flat, count = tensor.reshape(-1), torch.Size(shape).numel()
    chosen = flat[:count]
    if _has_nonzero(tensor) and not bool(chosen.all()):
        chosen = flat[(flat if flat.is_complex() else flat.float()).abs().topk(count).indices]
    return chosen.reshape(shape).clone()


def _has_nonzero(tensor: Tensor) -> bool:
    """Whether any element is not 0; looks at the first ones first, because that is usually enough."""
    flat = tensor.detach().reshape(-1)
    return bool(flat[:64].any()) or bool(flat.any())


def group_equivalent(
    model_entries: Mapping[str, TensorEntry], phases: Sequence[Phase], effects: Sequence[Effect]
) -> dict[str, list[TensorEntry]]:
    """Group the tensors for which a rehearsal gives the same result, so that one stand-in is enough for each group.

    Returns the entries of each group by the name of its first tensor. Equivalent tensors have the same kind, dtype and shape
    of the stand-in, and in each phase the same role, parameter group and effect of a batch.
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
        shape = tuple(min(2, size) for size in tensor.shape)
        key = (entry.kind, tensor.dtype, shape, _has_nonzero(tensor), *of_each_phase)
        equivalents.setdefault(key, []).append(entry)
    return {members[0].name: members for members in equivalents.values()}


def _drop_gradient(parameter: Tensor) -> None:
    """Set the gradient to None; used as a hook."""
    parameter.grad = None

"""Rehearse a run: predict which tensors would change, by training a small stand-in for the model.

The stand-in has a few elements of each tensor. Optimizer, scheduler and freezing method are those of the run. Its loss gives
gradients to the same parameters as a real batch would, and its forward pass changes the same tensors. The audit, which
compares the bits of all tensors before and after a run, does so here too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from runner.contract import Row
from runner.foresight.effects import Effect
from runner.foresight.stand_in import StandInModel, group_equivalent
from runner.freezing.groups import Group, regroup
from runner.freezing.phases.factors import RateFactors
from runner.freezing.phases.phase import Phase, Plan
from runner.freezing.selection import Selection, without
from runner.methods.base import FreezingMethod
from runner.methods.grad_none import drop_gradient
from runner.proof.audit import audit
from runner.proof.audit_report import Report
from runner.proof.causes.replay import frozen_gradients_affect_others
from runner.seeding import preserve_random_state
from runner.tensors import TensorEntry
from runner.tensors.optimizer_state import drop_state
from runner.training.loop import Step, Task, learning_rates, name_of_group, train

FULL_STEPS = 32  # of each phase (span of steps with the same frozen layers); for later steps, only the scheduler is called
LearningRates = dict[int, dict[str, float]]  # {step number: {parameter group name: learning rate}}


@dataclass(frozen=True)
class RehearsedPhase:
    """A phase of a rehearsal: the numbers of its steps, and the rows that are about these steps alone."""

    steps: range
    rows: list[Row]


@dataclass
class Rehearsal:
    """The predictions for a training: that of a small stand-in for the model, or some steps of the model itself.

    Attributes:
        phases: the phases that were rehearsed, or those of them that are of interest.
        rows: for each parameter and buffer of the model, a dict that says whether it would change and why.
        lrs: {step number: {parameter group name: learning rate}}.
        scheduler: the learning rate scheduler that was used, or None.
        optimizer_couples: whether gradients of frozen parameters change how the optimizer updates the other parameters, as
            under LBFGS.
    """

    phases: list[RehearsedPhase]
    rows: list[Row]
    lrs: LearningRates
    scheduler: Any
    optimizer_couples: bool = False


def rehearse(
    model_entries: Mapping[str, TensorEntry],  # the tensors of the real model, by name
    plan: Plan,  # what the schedule says about the run
    phases: Sequence[Phase],  # those of its phases that are simulated, with their groups
    *,
    effects: Sequence[Effect],  # what a real batch does in each phase
    batches: int,  # the number of steps of the run
    method: FreezingMethod,
    build_optimizer: Callable[[list[Group]], Optimizer],
    build_scheduler: Callable[[Optimizer], Any],
    zero_grad_to_none: bool,
    reset: Collection[str] = (),  # the groups whose options a new phase sets anew
) -> Rehearsal:
    """Simulate the steps of a run on a small stand-in for its model, and return which tensors of the model would change.

    Leaves the random state as it is. Raises what the optimizer, scheduler or freezing method raises.
    """
    method = copy.copy(method)  # a method that stores its optimizer must not store this one
    with preserve_random_state(), ExitStack() as undo:
        phase_undo = undo.enter_context(ExitStack())
        equivalents = group_equivalent(model_entries, phases, effects)
        stand_in = StandInModel({name: members[0] for name, members in equivalents.items()})
        optimizer = build_optimizer([dict(group) for group in stand_in.map_groups(phases[0].groups)])
        frozen = stand_in.map_selection(phases[0].selection)
        factors = RateFactors(optimizer, stand_in.map_blocks(plan.blocks, model_entries), undo)
        lrs, restore_lrs = LearningRates(), ExitStack()
        with audit(stand_in, frozen, optimizer, watch_forward=True) as report:
            scheduler = build_scheduler(optimizer)
            for number, (phase, effect) in enumerate(zip(phases, effects, strict=True)):
                restore_lrs.close()
                phase_undo.close()
                if number:
                    switch(stand_in, optimizer, report, before=phases[number - 1], after=phase, plan=plan, reset=reset)
                frozen = stand_in.map_selection(phase.selection)
                factors.begin(phase)
                method.attach(optimizer, frozen, phase_undo)
                drop_gradients(stand_in, effect, phase_undo)
                train_steps = partial(train, stand_in, optimizer, _task_of(effect), zero_grad_to_none=zero_grad_to_none)
                steps = steps_of(phases, number, batches)
                lrs |= run_phase(train_steps, optimizer, scheduler, steps, restore_lrs=restore_lrs, factors=factors)
        are_coupled = couples(stand_in, optimizer, frozen, _task_of(replace(effects[-1], written=frozenset())))
    to_rows = partial(_rows_of_model, stand_in, model_entries, equivalents)
    of_phases = [to_rows(phase.rows) for phase in report.phases] or [to_rows(report.rows)]
    rehearsed = [RehearsedPhase(steps_of(phases, number, batches), rows) for number, rows in enumerate(of_phases)]
    return Rehearsal(rehearsed, to_rows(report.rows), lrs, scheduler, optimizer_couples=are_coupled)


def steps_of(phases: Sequence[Phase], number: int, batches: int) -> range:
    """Return the numbers of the steps of the phase with this index; the last one lasts to step `batches`."""
    last = phases[number + 1].first - 1 if number + 1 < len(phases) else batches
    return range(phases[number].first, last + 1)


def switch(
    stand_in: StandInModel,
    optimizer: Optimizer,
    report: Report,
    *,
    before: Phase,
    after: Phase,
    plan: Plan,
    reset: Collection[str],
) -> None:
    """Begin the phase `after` on the stand-in, as it is begun on the real model."""
    regroup(optimizer, stand_in.map_groups(before.groups), stand_in.map_groups(after.groups), reset=reset)
    if plan.drops_state:
        newly = stand_in.map_selection(without(after.selection, before.selection))
        drop_state(optimizer, newly.parameters.values())
    declare(report, stand_in.map_selection(before.selection), stand_in.map_selection(after.selection))


def couples(stand_in: StandInModel, optimizer: Optimizer, frozen: Selection, task: Task) -> bool:
    """Return whether gradients of frozen parameters change the updates of others; False if the step cannot be replayed."""
    stand_in.zero_grad()
    task(stand_in, 0).backward()
    with suppress(Exception):
        return frozen_gradients_affect_others(optimizer, list(frozen.parameters.values()))
    return False


def drop_gradients(stand_in: StandInModel, effect: Effect, undo: ExitStack) -> None:
    """Let backward drop the gradients that it drops in the real model, until `undo` is closed."""
    for tensor_id, tensor in stand_in.stand_in_of.items():
        if effect.gradients.get(tensor_id) == "dropped":
            undo.callback(tensor.register_post_accumulate_grad_hook(drop_gradient).remove)


def declare(report: Report, before: Selection, after: Selection) -> None:
    """Tell an audit what is frozen from now on: `after` instead of `before`."""
    thawed = without(before, after)
    if thawed.parameters or thawed.buffers:
        report.unfreeze(thawed)
    report.freeze(after)


def _rows_of_model(
    stand_in: StandInModel,
    model_entries: Mapping[str, TensorEntry],
    equivalents: Mapping[str, list[TensorEntry]],
    rows: Iterable[Row],
) -> list[Row]:
    """Return a row (a dict that says whether a tensor changed, and why) for each tensor of the real model.

    `model_entries`: {name: tensor of the real model}. `equivalents`: {name of a tensor of the real model that has a
    stand-in: the tensors of the real model that the stand-in represents}; each of them gets a copy of its row. `rows`: those
    of the stand-in.
    """
    row_of_stand_in = {stand_in.name_of[row["name"]]: row for row in rows}
    row_of = {entry.name: row_of_stand_in[name] for name, members in equivalents.items() for entry in members}
    return [{**row_of[name], "name": name, "module_type": entry.module_type} for name, entry in model_entries.items()]


def run_phase(
    train_steps: Callable[..., Iterator[Step]],
    optimizer: Optimizer,
    scheduler: Any,
    steps: range,
    *,
    restore_lrs: ExitStack,
    full_steps: Iterable[int] | None = None,
    factors: RateFactors | None = None,
) -> LearningRates:
    """Simulate the steps of one phase; return {step number: {parameter group name: learning rate}}.

    The first steps, those in `full_steps` or else FULL_STEPS of them, are carried out by `train_steps`. For the other steps
    only the scheduler is called, to record the learning rates. Then up to two more training steps follow, in which each
    parameter group has the highest of its recorded rates: a tensor that changes at a lower rate also changes at this one.
    There are two because some optimizers use a rate one step later than it is set (ASGD).
    Closing `restore_lrs` sets the rates back. It stays open at first, so that the audit can repeat the last step to find why
    a frozen tensor changed. `factors`: what the scheduled rates are multiplied by.
    """
    full_steps = steps[:FULL_STEPS] if full_steps is None else full_steps
    factors = factors or RateFactors(optimizer, {}, ExitStack())
    made = train_steps(full_steps, scheduler=scheduler, first=steps.start)
    lrs = {step.number: factors.multiplied(step.lrs) for step in made}
    other_steps = steps[len(lrs) :]
    if scheduler is None or not other_steps:
        return lrs
    for number in other_steps:
        lrs[number] = factors.at(number, learning_rates(optimizer))
        advance(scheduler)
    for position, group in enumerate(optimizer.param_groups):
        if group.get("lr") is not None:
            name = name_of_group(position, group)
            restore_lrs.callback(group.__setitem__, "lr", group["lr"])
            group["lr"] = max(lrs[number][name] for number in other_steps)
    with factors.ignored():
        for _ in train_steps(other_steps[-2:]):
            pass
    return lrs


def advance(scheduler: Any) -> None:
    """Call the scheduler once, as after a training step."""
    scheduler.step(*([0.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))


def _task_of(effect: Effect) -> Task:
    """Return the loss function for the training loop: a function (stand-in model, step number) -> loss.

    `effect`: what a real batch does; the loss has the same effect on the stand-in model.
    """
    return lambda stand_in, step: stand_in(step, effect)

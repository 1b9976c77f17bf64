"""The phases of a run: the plan that the schedule gives, the groups of all phases, and the first phase."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from inspect import unwrap
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.assemble.objects import build_groups, build_optimizer
from runner.config.build import build, locate, offered
from runner.config.schema import Config
from runner.errors import ConfigError, SkippedError
from runner.freezing.eval_mode import force_eval_mode
from runner.freezing.groups import (
    Group,
    drop_empty_groups,
    groups_for_all_phases,
    set_apart,
    split_by_block,
    union_of_groups,
)
from runner.freezing.phases.check import check_plan
from runner.freezing.phases.factors import RateFactors
from runner.freezing.phases.phase import Run
from runner.freezing.phases.restriction import restricted
from runner.freezing.schedule import Phase, Plan
from runner.freezing.selection import Selection, nothing_of
from runner.methods.base import FreezingMethod
from runner.tensors.optimizer_state import needs_closure
from runner.training.tasks.wording import described


def build_plan(config: Config, selection: Selection, run: Run) -> Plan:
    """Call the config's schedule and return its plan; a list of phases becomes a plan of them.

    `selection`: what the config declares frozen. The field `groups` of each phase is still empty. Raises ConfigError if the
    schedule returns something else, if the first phase does not begin at step 1, if a phase does not begin later than the
    one before it, or if one begins after the last step; SkippedError if the optimizer does not work with the phases.
    """
    returned = build(config.schedule, "schedule", selection, **offered(config.schedule, "schedule", run=run))
    plan = Plan(returned) if isinstance(returned, list) else returned
    phases = plan.phases if isinstance(plan, Plan) else []
    if not isinstance(phases, list) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        wanted = f"it must return a list of {Phase.__module__.rpartition('.')[0]}.Phase, or a Plan of them"
        raise ConfigError(f"schedule returned {described(returned)}; {wanted}")
    firsts = [phase.first for phase in phases]
    if firsts[0] != 1 or firsts != sorted(set(firsts)):
        raise ConfigError(f"schedule returned phases that begin at steps {firsts}; they must begin at 1 and go up")
    if firsts[-1] > run.steps:
        late = sum(first > run.steps for first in firsts)
        raise ConfigError(
            f"schedule: {late} of {len(firsts)} phases would begin after the last step, the last one at step {firsts[-1]}; "
            f"the run has {run.steps} step{'s' * (run.steps > 1)}: give shorter phases, or more batches"
        )
    check_plan(plan, run, selection)
    path: Any = config.optimizer.get("_target_")
    refuse_closure(plan, unwrap(locate(path, "optimizer._target_")))  # before a builder asks for other groups
    return plan


def refuse_closure(plan: Plan, optimizer: object) -> None:
    """Raise SkippedError if the phases of a plan do not work with an optimizer, because its step takes a closure.

    `optimizer`: an optimizer, its class, or anything else, which is not refused.
    """
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    if not issubclass(kind, Optimizer) or not needs_closure(kind):
        return
    name = kind.__name__
    if plan.thaws:
        why = "its step direction is built from earlier steps of a fixed list of parameters"
        raise SkippedError(f"{name} cannot train parameters that were frozen in mid-run: {why}")
    if plan.blocks:
        raise SkippedError(f"{name} takes one parameter group, and each block of the schedule needs its own")


def selections_to_check(plan: Plan, selection: Selection, model: nn.Module) -> list[Selection]:
    """Return what is frozen in the phases that are known, each set once; a method must be able to freeze each.

    `selection`: what the config declares frozen. Phases that are found during the run may freeze any blocks of it: then all
    of it is returned too, and the last block alone, which lies behind what trains.
    """
    found = [phase.selection for phase in plan.phases]
    if plan.observe:
        last = list(plan.blocks.values())[-1:]
        found += [selection, *(restricted(selection, model, set(names)) for names in last)]
    distinct = {frozenset(each.parameters): each for each in reversed(found) if each.parameters or each.modules}
    return list(reversed(distinct.values())) or [plan.phases[-1].selection]


@dataclass
class FirstPhase:
    """What exists once the first phase of a run can begin.

    Attributes:
        phase: the first phase, with its groups.
        model: the model as the freezing method has prepared it.
        declared_groups: the parameter groups as the config declares them, each within one block of the plan.
        optimizer: the optimizer of the whole run.
        factors: multiplies the learning rates of blocks.
        undo: a stack of callbacks that undo what was done for the phase.
    """

    phase: Phase
    model: nn.Module
    declared_groups: list[Group]
    optimizer: Optimizer
    factors: RateFactors
    undo: ExitStack


def begin_first_phase(
    config: Config, plan: Plan, method: FreezingMethod, model: nn.Module, *, selection: Selection, undo: ExitStack
) -> FirstPhase:
    """Freeze in `model` what the first phase of the plan freezes, and build the optimizer. Closing `undo` undoes it.

    `selection`: what the config declares frozen.
    """
    phase, phase_undo, block_of = plan.phases[0], undo.enter_context(ExitStack()), blocks_by_id(plan, model)
    declared = split_by_block(build_groups(config, model, selection), block_of)
    force_eval_mode(phase.selection, phase_undo)
    to_train = prepared(method, model, phase.selection, phase_undo)
    phase = replace(phase, groups=groups_of_first_phase(plan, method, declared, selection))
    optimizer = build_optimizer(config, phase.groups)
    refuse_closure(plan, optimizer)
    factors = RateFactors(optimizer, block_of, undo)
    factors.begin(phase)
    return FirstPhase(phase, to_train, declared, optimizer=optimizer, factors=factors, undo=phase_undo)


def groups_of(method: FreezingMethod, declared: list[Group], selection: Selection, *, apart: bool) -> list[Group]:
    """Return the parameter groups that the method makes of the declared ones when `selection` is frozen.

    `apart`: give groups whose options the method has changed a name of their own; see `set_apart`. Raises ConfigError if the
    method returns no list of dicts.
    """
    returned = method.groups(declared, selection)
    if not isinstance(returned, list) or not all(isinstance(group, dict) and "params" in group for group in returned):
        raise ConfigError(
            f"method: groups returned {described(returned)}; it must return a list of parameter groups, "
            "dicts as torch.optim takes them"
        )
    return set_apart(returned, declared) if apart else returned


def groups_of_first_phase(
    plan: Plan, method: FreezingMethod, declared: list[Group], selection: Selection
) -> tuple[Group, ...]:
    """Return the parameter groups with which the optimizer is built: those of the first phase.

    Groups cannot be added during a run: many schedulers raise when one is. So a group that has parameters only in later
    phases is included without parameters. If phases are found during the run, any block may be frozen or not in them.
    `declared`: the groups as the config declares them. `selection`: what the config declares frozen.
    """
    selections = [phase.selection for phase in plan.phases]
    selections += [selection, nothing_of(selection)] if plan.observe else []
    first, *later = (groups_of(method, declared, each, apart=plan.thaws) for each in selections)
    if plan.thaws:
        return tuple(union_of_groups(first, [*later, declared]))  # a method may read its groups from the present flags
    return tuple(groups_for_all_phases(drop_empty_groups(first), later))


def blocks_by_id(plan: Plan, model: nn.Module) -> dict[int, str]:
    """Return {id of a parameter: the block of the plan that it is in}."""
    parameters = dict(model.named_parameters())
    return {id(parameters[name]): block for block, names in plan.blocks.items() for name in names}


def prepared(method: FreezingMethod, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
    """Return the model that the method's `prepare` returns. Raises ConfigError if that is no module."""
    model = method.prepare(model, selection, undo)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"method: prepare returned {described(model)}; it must return the model to train")
    return model

"""Replay an optimizer step (do it on copies), with one thing changed at a time, to find out why it moves a tensor.

Of an optimizer, only parameter groups, state and gradients are assumed, so that third-party optimizers work too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor
from torch.optim import Optimizer

from runner.contract import LeakCause
from runner.freezing.groups import group_lr
from runner.proof.causes.fresh_state import FreshState
from runner.proof.causes.gradients import gradient_kind
from runner.proof.causes.no_collectives import no_collectives
from runner.proof.causes.optimizer_copy import copy_optimizer, step_copy, stepped_tensors, with_inner_optimizers
from runner.proof.causes.trials import Edit, Trials, moved_from, stepped_copy
from runner.seeding import preserve_random_state
from runner.shards import local
from runner.tensors import memory_overlaps, same_bits

WEIGHT_DECAY_NAME = re.compile(r"(^|_)weight_?decay|^(wd|l2|l2_reg|decay)$")  # names of the option in various optimizers


def find_causes(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], declared_lrs: Sequence[float], with_closure: bool = False
) -> dict[str, LeakCause]:
    """Return {tensor name: why a step of the optimizer, with the current gradients and state, changes the tensor}.

    Tensors that the step does not move are left out, and tensors whose cause is not found. Exceptions are tensors that the
    optimizer's first step has moved, if it is the only one so far, and tensors that share memory with another tensor that
    the optimizer may update: their cause is `shared_tensor`.

    `tensors`: {name: frozen tensor}. `declared_lrs`: the learning rate of each parameter group when the tensors were
    declared frozen. `with_closure`: call `step` with a closure. The step is done on copies; the real parameters, optimizer
    and random state stay as they are. Raises what the optimizer raises, and what copying it raises.
    """
    return _causes_and_errors(optimizer, tensors, declared_lrs, with_closure)[0]


def try_find_causes(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], declared_lrs: Sequence[float], with_closure: bool = False
) -> tuple[dict[str, LeakCause], str]:
    """Do what `find_causes` does, and return (what it returns, error message).

    The message is empty, unless the step could not be done on copies, or could not with something changed. It then says why
    the causes of tensors that were moved are missing.
    """
    try:
        with no_collectives():  # the other processes do not replay this step
            causes, errors = _causes_and_errors(optimizer, tensors, declared_lrs, with_closure)
    except Exception as error:  # a third-party optimizer may raise anything, and the training must go on
        return {}, f"a step of {type(optimizer).__name__} could not be replayed ({type(error).__name__}: {error})"
    return causes, "; ".join(dict.fromkeys(errors))


def _causes_and_errors(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], declared_lrs: Sequence[float], with_closure: bool
) -> tuple[dict[str, LeakCause], list[str]]:
    """Do what `find_causes` does, and return (what it returns, why causes of moved tensors are missing)."""
    trials = Trials(optimizer, tensors, with_closure)
    causes = _causes_of_moves(trials, declared_lrs) if trials.moved else {}
    if trials.start_at_first_step():
        causes.update(_causes_of_moves(trials, declared_lrs))
    others = {name: tensor for name, tensor in tensors.items() if name not in causes}
    causes.update(dict.fromkeys(sharing_memory(others, optimizer), "shared_tensor"))
    return causes, trials.errors


def _causes_of_moves(trials: Trials, declared_lrs: Sequence[float]) -> dict[str, LeakCause]:
    """Return {tensor name: why a step moves the tensor} for `trials.moved`; tensors that no trial explains are left out."""
    with_gradient = {name for name in trials.moved if gradient_kind(trials.tensors[name]) == "present"}
    causes = _causes_with_gradient(with_gradient, trials, declared_lrs) if with_gradient else {}
    unsure = trials.rewritten & with_gradient
    if unsure:
        moved = trials.try_step("with a zero gradient", without_gradient=unsure)
        for name in unsure if moved is None else unsure & moved:
            causes.pop(name, None)
            trials.errors.append("the step writes to the gradient, so it is not known what the gradient was before it")
    if without_gradient := trials.moved - with_gradient:
        causes.update(_causes_without_gradient(without_gradient, trials))
    return causes


def _causes_with_gradient(names: set[str], trials: Trials, declared_lrs: Sequence[float]) -> dict[str, LeakCause]:
    """Return {tensor name: why a step moves the tensor} for tensors with a gradient that is not zero.

    `names`: the names of the tensors; a step moves all of them. `declared_lrs`: the learning rate of each parameter group
    when the tensors were declared frozen.
    The cause is `scheduler` if the step does not move the tensor at the declared learning rates. Otherwise it is
    `optimizer_ignores_lr` if the declared or the current learning rate of the tensor's group is 0. Otherwise it is
    `gradient`. Tensors for which a trial raises are left out.
    """
    groups = trials.optimizer.param_groups
    lrs = [group_lr(group) for group in groups]
    old_lrs = [*declared_lrs, *lrs[len(declared_lrs) :]]  # groups may have been added since
    held_at_old_lrs, undecided = set[str](), set[str]()
    if old_lrs != lrs:
        set_old_lrs = partial(_set_learning_rates, old_lrs)
        moved = trials.try_step("at the declared learning rates", set_old_lrs)
        if moved is None:
            return {}
        held_at_old_lrs = names - moved
        if names & moved:  # some optimizers keep the learning rate in their state (ASGD)
            fresh = trials.try_step("with fresh state", trials.fresh_state)
            fresh_at_old_lrs = fresh and trials.try_step("with fresh state", set_old_lrs, trials.fresh_state)
            if fresh is None or fresh_at_old_lrs is None:
                undecided = names & moved
            else:
                held_at_old_lrs |= (names & fresh) - fresh_at_old_lrs
    ids_at_lr_zero = {
        id(parameter)
        for group, lr, old_lr in zip(groups, lrs, old_lrs, strict=True)
        for parameter in group["params"]
        if lr == 0 or old_lr == 0
    }
    causes: dict[str, LeakCause] = {}
    for name in names - undecided:
        cause: LeakCause = "optimizer_ignores_lr" if id(trials.tensors[name]) in ids_at_lr_zero else "gradient"
        causes[name] = "scheduler" if name in held_at_old_lrs else cause
    return causes


def _causes_without_gradient(names: set[str], trials: Trials) -> dict[str, LeakCause]:
    """Return {tensor name: why a step moves the tensor} for tensors whose gradient is None or zero.

    `names`: the names of the tensors; a step moves all of them.
    The cause is what must be removed so that the tensor no longer moves: weight decay, optimizer state, or both. If the
    tensor moves even without both, the cause is `optimizer_rule`. Tensors that need a trial that raises are left out.
    """
    edits_of_cause: dict[LeakCause, tuple[str, tuple[Edit, ...]]] = {
        "weight_decay": ("without weight decay", (_zero_weight_decay,)),
        "optimizer_state": ("with fresh state", (trials.fresh_state,)),
        "weight_decay|optimizer_state": ("without weight decay, with fresh state", (_zero_weight_decay, trials.fresh_state)),
    }
    causes: dict[str, LeakCause] = {}
    unexplained = set(names)
    for cause, (how, edits) in edits_of_cause.items():
        if not unexplained:
            break
        moved = trials.try_step(how, *edits)
        is_undecided = moved is None
        if (
            moved is None and trials.fresh_state in edits
        ):  # what holds without the state needs it, whatever the count of steps
            moved = trials.try_step(how, *edits[:-1], FreshState())
        causes.update(dict.fromkeys(unexplained - (unexplained if moved is None else moved), cause))
        if is_undecided:
            return causes
        unexplained &= moved or set()
    return {**causes, **dict.fromkeys(unexplained, "optimizer_rule")}


def moved_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor], *edits: Edit, with_closure: bool = False) -> set[str]:
    """Copy an optimizer and its parameters, step the copy, and return the names of the tensors whose copies changed.

    `tensors`: {name: tensor of the real model}; they stay as they are. `edits`: functions that change the copy before the
    step; each is called with the copy. `with_closure`: call `step` with a closure. Raises what the step raises, and what
    copying the optimizer raises.
    """
    return moved_from(tensors, tensors, stepped_copy(optimizer, edits, with_closure)[1])


def frozen_gradients_affect_others(optimizer: Optimizer, frozen: Sequence[Tensor]) -> bool:
    """Return whether the gradients of the frozen tensors change how a step updates the other parameters.

    Compares two steps on copies: one with the gradients of the frozen tensors, and one with these gradients set to None.
    Raises what these steps raise.
    """
    if all(gradient_kind(tensor) != "present" for tensor in frozen):
        return False
    results = []
    for without_gradient in ((), frozen):
        with preserve_random_state():
            optimizer_copy, copy_of = copy_optimizer(optimizer)
            for tensor in without_gradient:
                if id(tensor) in copy_of:
                    copy_of[id(tensor)].grad = None
            step_copy(optimizer_copy)
            results.append(copy_of)
    other_ids = results[0].keys() - {id(tensor) for tensor in frozen}
    return any(not same_bits(results[0][tensor_id], results[1][tensor_id]) for tensor_id in other_ids)


def sharing_memory(tensors: Mapping[str, Tensor], optimizer: Optimizer) -> set[str]:
    """Return the names of those tensors whose memory another tensor uses that the optimizer may update."""
    at_storage: dict[int, list[Tensor]] = {}
    for other in stepped_tensors(optimizer) if tensors else ():
        at_storage.setdefault(local(other).untyped_storage().data_ptr(), []).append(other)
    return {
        name
        for name, tensor in tensors.items()
        for other in at_storage.get(local(tensor).untyped_storage().data_ptr(), ())
        if other is not tensor and memory_overlaps(other, tensor)
    }


def _set_learning_rates(lrs: list[float], optimizer: Optimizer) -> None:
    """Set the learning rate of parameter group i to `lrs[i]`, unless `lrs[i]` is NaN."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        if lr == lr:  # NaN stands for a group without a learning rate
            group["lr"] = lr


def _zero_weight_decay(optimizer: Optimizer) -> None:
    """Set all options for weight decay of an optimizer to 0, in its parameter groups, defaults and attributes.

    The same is done for the optimizers that it wraps.
    """
    for each in with_inner_optimizers(optimizer):
        for options in (*each.param_groups, each.defaults, vars(each)):
            for name in options:
                if WEIGHT_DECAY_NAME.search(name):
                    options[name] = 0.0

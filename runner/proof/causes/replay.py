"""Replay an optimizer step (do it on copies), with one thing changed at a time, to find out why it moves a tensor.

Of an optimizer, only parameter groups, state and gradients are assumed, so that third-party optimizers work too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from runner.contract import LeakCause
from runner.freezing.groups import group_lr
from runner.proof.causes.optimizer_copy import copy_optimizer, items_of, step_copy, stepped_tensors, with_inner_optimizers
from runner.seeding import preserve_random_state
from runner.tensors import memory_overlaps, same_bits

Edit = Callable[[Optimizer], None]  # changes the copy of an optimizer before its step is replayed


WEIGHT_DECAY_NAME = re.compile(r"(^|_)weight_?decay|^(wd|l2|l2_reg|decay)$")  # names of the option in various optimizers


def find_causes(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], declared_lrs: Sequence[float], with_closure: bool = False
) -> dict[str, LeakCause]:
    """Return {tensor name: why a step of the optimizer, with the current gradients and state, changes the tensor}.

    Tensors that the step does not move are left out. Exceptions are tensors that share memory with another tensor that the
    optimizer may update: their cause is `shared_tensor`.

    `tensors`: {name: frozen tensor}. `declared_lrs`: the learning rate of each parameter group when the tensors were
    declared frozen. `with_closure`: call `step` with a closure. The step is done on copies; the real parameters, optimizer
    and random state stay as they are. Raises what the optimizer raises, and what copying it raises.
    """
    with preserve_random_state():
        replay = partial(moved_tensors, optimizer, tensors, with_closure=with_closure)
        moved = replay()
        with_gradient = {name for name in moved if gradient_kind(tensors[name]) == "present"}
        causes = _causes_with_gradient(optimizer, {name: tensors[name] for name in with_gradient}, replay, declared_lrs)
        if without_gradient := moved - with_gradient:
            causes.update(_causes_without_gradient(without_gradient, replay))
    for name, tensor in tensors.items():
        if name not in causes and shares_memory(tensor, optimizer):
            causes[name] = "shared_tensor"
    return causes


def _causes_with_gradient(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], replay: Callable[..., set[str]], declared_lrs: Sequence[float]
) -> dict[str, LeakCause]:
    """Return {tensor name: why a step moves the tensor} for tensors with a gradient that is not zero.

    `tensors`: {name: tensor}; a step moves all of them. `replay(*edits)`: changes a copy of the optimizer by the functions
    `edits`, steps the copy, and returns the names of the tensors that moved. `declared_lrs`: the learning rate of each
    parameter group when the tensors were declared frozen.
    The cause is `scheduler` if the step does not move the tensor at the declared learning rates. Otherwise it is
    `optimizer_ignores_lr` if the declared or the current learning rate of the tensor's group is 0. Otherwise it is
    `gradient`.
    """
    lrs = [group_lr(group) for group in optimizer.param_groups]
    old_lrs = [*declared_lrs, *lrs[len(declared_lrs) :]]  # groups may have been added since
    moved_at_old_lrs = set(tensors)
    if tensors and old_lrs != lrs:
        set_old_lrs = partial(_set_learning_rates, old_lrs)
        moved_at_old_lrs = replay(set_old_lrs)
        if moved_at_old_lrs:  # some optimizers keep the learning rate in their state (ASGD)
            moved_at_old_lrs &= replay(set_old_lrs, _clear_state)
    ids_at_lr_zero = {
        id(parameter)
        for group, lr, old_lr in zip(optimizer.param_groups, lrs, old_lrs, strict=True)
        for parameter in group["params"]
        if lr == 0 or old_lr == 0
    }
    causes: dict[str, LeakCause] = {}
    for name, tensor in tensors.items():
        cause: LeakCause = "optimizer_ignores_lr" if id(tensor) in ids_at_lr_zero else "gradient"
        causes[name] = cause if name in moved_at_old_lrs else "scheduler"
    return causes


def _causes_without_gradient(names: set[str], replay: Callable[..., set[str]]) -> dict[str, LeakCause]:
    """Return {tensor name: why a step moves the tensor} for tensors whose gradient is None or zero.

    `names`: the names of the tensors; a step moves all of them. `replay(*edits)`: changes a copy of the optimizer by the
    functions `edits`, steps the copy, and returns the names of the tensors that moved.
    The cause is what must be removed so that the tensor no longer moves: weight decay, optimizer state, or both. If the
    tensor moves even without both, the cause is `optimizer_rule`.
    """
    edits_of_cause: dict[LeakCause, tuple[Edit, ...]] = {
        "weight_decay": (_zero_weight_decay,),
        "optimizer_state": (_clear_state,),
        "weight_decay|optimizer_state": (_zero_weight_decay, _clear_state),
    }
    causes: dict[str, LeakCause] = dict.fromkeys(names, "optimizer_rule")
    unexplained = set(names)
    for cause, edits in edits_of_cause.items():
        if unexplained:
            moved = replay(*edits)
            causes.update(dict.fromkeys(unexplained - moved, cause))
            unexplained &= moved
    return causes


def moved_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor], *edits: Edit, with_closure: bool = False) -> set[str]:
    """Copy an optimizer and its parameters, step the copy, and return the names of the tensors whose copies changed.

    `tensors`: {name: tensor of the real model}; they stay as they are. `edits`: functions that change the copy before the
    step; each is called with the copy. `with_closure`: call `step` with a closure. Raises what the step raises, and what
    copying the optimizer raises.
    """
    optimizer_copy, copy_of = copy_optimizer(optimizer)
    for edit in edits:
        edit(optimizer_copy)
    try:
        step_copy(optimizer_copy, with_closure)
    except Exception:
        if _clear_state not in edits:
            raise
        # Some optimizers create their state in `__init__` only (Adagrad): zero the state instead of clearing it.
        optimizer_copy, copy_of = copy_optimizer(optimizer)
        for edit in (*edits, _zero_state):
            if edit is not _clear_state:
                edit(optimizer_copy)
        step_copy(optimizer_copy, with_closure)
    return {name for name, real in tensors.items() if id(real) in copy_of and not same_bits(real, copy_of[id(real)])}


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


def try_find_causes(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], declared_lrs: Sequence[float], with_closure: bool = False
) -> tuple[dict[str, LeakCause], str]:
    """Do what `find_causes` does, and return (what it returns, error message).

    The message is empty, unless the step could not be done on copies.
    """
    try:
        return find_causes(optimizer, tensors, declared_lrs, with_closure), ""
    except Exception as error:  # a third-party optimizer may raise anything, and the training must go on
        return {}, f"a step of {type(optimizer).__name__} could not be replayed ({type(error).__name__}: {error})"


def shares_memory(tensor: Tensor, optimizer: Optimizer) -> bool:
    """Return whether an optimizer may update another tensor that uses the same memory."""
    return any(other is not tensor and memory_overlaps(other, tensor) for other in stepped_tensors(optimizer))


def gradient_kind(parameter: Tensor) -> str:
    """Return `none` if a parameter's `.grad` is None, `zero` if all elements of it are 0, otherwise `present`."""
    if parameter.grad is None:
        return "none"
    values = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
    return "present" if bool(values.any()) else "zero"


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


def _clear_state(optimizer: Optimizer) -> None:
    """Remove all state of an optimizer; tensors that it keeps in attributes instead of in its state are set to zero."""
    for each in with_inner_optimizers(optimizer):
        each.state.clear()
    _zero_attribute_tensors(optimizer)


def _zero_state(optimizer: Optimizer) -> None:
    """Set to zero, in place, all tensors and numbers in the state of an optimizer.

    The same is done for tensors that it keeps in attributes instead of in its state.
    """
    for each in with_inner_optimizers(optimizer):
        _zero_nested(each.state)
    _zero_attribute_tensors(optimizer)


def _zero_attribute_tensors(optimizer: Optimizer) -> None:
    """Set to zero the tensors that are attributes of the optimizer, such as a momentum buffer, but not its parameters.

    Tensors without a dimension stay as they are, because they are probably a learning rate or a step count.
    """
    optimizers = with_inner_optimizers(optimizer)
    parameter_ids = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    for attribute in (attribute for each in optimizers for attribute in vars(each).values()):
        for item in items_of(attribute):
            if type(item) is Tensor and item.dim() and id(item) not in parameter_ids:
                item.detach().zero_()


def _zero_nested(value: Any) -> Any:
    """Set all tensors and numbers in nested dicts and lists to 0, in place; return `value`, or 0 if it is a number."""
    if isinstance(value, Tensor):
        value.detach().zero_()
    elif isinstance(value, dict):
        value.update({key: _zero_nested(item) for key, item in value.items()})
    elif isinstance(value, list):
        value[:] = map(_zero_nested, value)
    return type(value)(0) if isinstance(value, (int, float)) else value

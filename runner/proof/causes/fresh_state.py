"""Give a copy of an optimizer the state that it had before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from runner.proof.causes.optimizer_copy import items_of, with_inner_optimizers

LEARNING_RATE_NAMES = ("lr", "initial_lr")  # options, also where the step itself sets them


@dataclass(frozen=True)
class Number:
    """A number that an optimizer keeps in an attribute or in a parameter group, and that its step changes.

    Attributes:
        optimizer: the index of the optimizer that has it, in `with_inner_optimizers`.
        group: the index of the parameter group that has it; None if it is an attribute.
        name: the name of the attribute, or the key in the group.
        before, after: its value before and after the step.
    """

    optimizer: int
    group: int | None
    name: str
    before: int | float
    after: int | float


@dataclass(frozen=True)
class FreshState:
    """An edit, called with a copy of an optimizer: removes the state of the copy, as if it had made no step.

    Attributes:
        numbers: the numbers outside the state that a step changes, such as a count of steps; they are set back too.
        keeps_entries: set tensors and numbers in the state to zero instead of removing them, except Boolean tensors (masks).
            This is for optimizers that create their state in `__init__` only (Adagrad).
    """

    numbers: tuple[Number, ...] = ()
    keeps_entries: bool = False

    def __call__(self, optimizer: Optimizer) -> None:
        optimizers = with_inner_optimizers(optimizer)
        for each in optimizers:
            if self.keeps_entries:
                _zero_nested(each.state)
            else:
                each.state.clear()
        for number in self.numbers:
            self._set_back(number, optimizers[number.optimizer])
        _zero_attribute_tensors(optimizers)

    def _set_back(self, number: Number, optimizer: Optimizer) -> None:
        """Set a number of the optimizer to its value before the first step, as far as that is known."""
        options = vars(optimizer) if number.group is None else optimizer.param_groups[number.group]
        if number.group is not None and number.name in optimizer.defaults:
            options[number.name] = optimizer.defaults[number.name]
        elif number.group is not None and not self.keeps_entries:
            options.pop(number.name, None)
        elif isinstance(number.before, int):
            options[number.name] = 0

    def keeping_entries(self) -> FreshState:
        """Return the same edit, which sets the state to zero instead of removing it."""
        return replace(self, keeps_entries=True)


def numbers_changed(before: Optimizer, after: Optimizer) -> tuple[Number, ...]:
    """Return the numbers that differ between an optimizer and its copy after a step, except learning rates.

    They are searched for in the attributes and parameter groups, also in those of the optimizers that it wraps.
    """
    found: list[Number] = []
    for index, (old, new) in enumerate(zip(with_inner_optimizers(before), with_inner_optimizers(after), strict=False)):
        found += _differences(vars(old), vars(new), index, None)
        for group, (old_group, new_group) in enumerate(zip(old.param_groups, new.param_groups, strict=False)):
            found += _differences(old_group, new_group, index, group)
    return tuple(found)


def has_made_one_step(
    optimizer: Optimizer, after: Optimizer, tensor: Tensor, copy: Tensor, *, numbers: tuple[Number, ...]
) -> bool:
    """Return whether the optimizer has made exactly one step so far for a tensor, as its counts of steps say.

    `after`: a copy of the optimizer that has made a step more. `copy`: the copy of the tensor. `numbers`: what
    `numbers_changed` returns for the two. A count of steps is a number that this step has raised by 1. Returns False if
    there is none, and if some are not 1.
    """
    counts = []
    for number in numbers:
        groups = with_inner_optimizers(optimizer)[number.optimizer].param_groups
        if number.group is None or any(each is tensor for each in groups[number.group]["params"]):
            counts.append((number.before, number.after))
    for old, new in zip(with_inner_optimizers(optimizer), with_inner_optimizers(after), strict=False):
        if tensor in old.state and copy in new.state:
            counts += _pairs(old.state[tensor], new.state[copy])
        counts += _pairs(old.state, new.state)
    started = [before for before, now in counts if now == before + 1]
    return bool(started) and all(count == 1 for count in started)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], index: int, group: int | None) -> Iterable[Number]:
    """Return the numbers that differ between two dicts of attributes or options; `index`, `group`: where these belong."""
    for name, old in before.items():
        new = after.get(name)
        if _is_number(old) and _is_number(new) and new != old and name not in LEARNING_RATE_NAMES:
            yield Number(optimizer=index, group=group, name=name, before=old, after=new)


def _pairs(before: Any, after: Any) -> list[tuple[float, float]]:
    """Return (value before, value after) for each number, or tensor without a dimension, that two dicts have by name."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return []
    values = [(before[key], after.get(key)) for key in before if isinstance(key, str)]
    return [(float(old), float(new)) for old, new in values if _is_scalar(old) and _is_scalar(new)]


def _is_scalar(value: Any) -> TypeGuard[int | float | Tensor]:
    """Return whether a value is a number, or a real tensor without a dimension."""
    return value.dim() == 0 and not value.is_complex() if isinstance(value, Tensor) else _is_number(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is an int or a float; a bool is neither here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _zero_attribute_tensors(optimizers: list[Optimizer]) -> None:
    """Set to zero the tensors that are attributes of the optimizers, such as a momentum buffer, but not their parameters.

    Tensors without a dimension stay as they are, because they are probably a learning rate or a step count.
    """
    parameter_ids = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    for attribute in (attribute for each in optimizers for attribute in vars(each).values()):
        for item in items_of(attribute):
            if type(item) is Tensor and item.dim() and id(item) not in parameter_ids:
                item.detach().zero_()


def _zero_nested(value: Any) -> Any:
    """Set all tensors and numbers in nested dicts and lists to 0, in place, except Boolean ones.

    Returns `value`, or 0 if it is a number.
    """
    if isinstance(value, Tensor) and value.dtype != torch.bool:
        value.detach().zero_()
    elif isinstance(value, dict):
        value.update({key: _zero_nested(item) for key, item in value.items()})
    elif isinstance(value, list):
        value[:] = map(_zero_nested, value)
    return type(value)(0) if _is_number(value) else value

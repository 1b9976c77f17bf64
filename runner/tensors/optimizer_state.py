"""What an optimizer keeps besides the parameters: its state, such as momentum, and the gradients that it reads."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter, signature

from torch import Tensor
from torch.optim import Optimizer


def needs_closure(optimizer: Optimizer | type[Optimizer]) -> bool:
    """Return whether the `step` of an optimizer must be given a function that computes the loss, as with LBFGS."""
    closure = signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is Parameter.empty


def drop_state(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Delete the gradients of these parameters, and their state in the optimizer.

    An optimizer that needs a closure, such as LBFGS, keeps the state of all its parameters under one of them: a step
    direction, to which each of them contributes. Its whole state is deleted.
    """
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
        optimizer.state.pop(parameter, None)
    if parameters and needs_closure(optimizer):
        optimizer.state.clear()

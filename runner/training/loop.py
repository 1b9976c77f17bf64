"""The training loop: plain PyTorch without code for freezing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from inspect import Parameter, signature
from itertools import chain, count, islice
from math import nan
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

Task = Callable[[nn.Module, Any], Tensor]  # task(model, batch) returns the loss


@dataclass(frozen=True)
class Step:
    """What one finished training step reports.

    Attributes:
        number: the number of the step, counted from 1.
        loss: the loss before the update, on the model's device.
        seconds: how long the step took, without the time to load the batch.
        parts: {name: summand of the loss}, empty where the loss has one part alone.
        lrs: {name of the parameter group, or its index in `optimizer.param_groups` if it has no name: learning rate in this
            step}.
        planned: how many steps the run is to make; 0 if that is not known.
    """

    number: int
    loss: Tensor
    seconds: float
    lrs: dict[str, float]
    parts: dict[str, Tensor] = field(default_factory=dict)
    planned: int = 0


def train(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    batches: Iterable[Any],
    *,
    scheduler: Any = None,
    clip: float | None = None,
    zero_grad_to_none: bool = True,
    first: int = 1,
    batches_in_step: Callable[[int], int] = lambda step: 1,
) -> Iterator[Step]:
    """Train step by step, and yield a Step (number, loss, seconds, learning rates) after each.

    `scheduler`: a torch scheduler, stepped after each training step. `clip`: the maximum total norm of all gradients (None:
    no clipping). `zero_grad_to_none`: before each step, gradients are set to None if True, to zeros if False. `first`: the
    number of the first step. `batches_in_step(number)`: how many batches a step takes, asked once its first batch is there;
    the gradients and losses of the batches are averaged. An optimizer that needs a closure takes one a step.
    """
    model.train()
    yield from train_in_present_modes(
        model,
        optimizer,
        task,
        batches,
        scheduler=scheduler,
        clip=clip,
        zero_grad_to_none=zero_grad_to_none,
        first=first,
        batches_in_step=batches_in_step,
    )


def train_in_present_modes(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    batches: Iterable[Any],
    *,
    scheduler: Any = None,
    clip: float | None = None,
    zero_grad_to_none: bool = True,
    first: int = 1,
    batches_in_step: Callable[[int], int] = lambda step: 1,
) -> Iterator[Step]:
    """Do what `train` does, but leave each module in train or eval mode as it is."""
    parameters, batches = list(model.parameters()), iter(batches)
    closure_of_step = signature(optimizer.step).parameters.get("closure")
    with_closure = closure_of_step is not None and closure_of_step.default is Parameter.empty  # as with LBFGS
    for number in count(first):
        if not (loaded := list(islice(batches, 1))):
            return
        size, start = batches_in_step(number), perf_counter()

        def closure(loaded: list[Any] = loaded, size: int = size) -> Any:
            optimizer.zero_grad(set_to_none=zero_grad_to_none)
            loss = backward(task, model, loaded if size == 1 else chain(loaded, islice(batches, size - 1)), size)
            if clip is not None and parameters:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            return loss

        if with_closure:
            loss = optimizer.step(closure)
        else:
            loss = closure()
            optimizer.step()
        lrs = learning_rates(optimizer)  # read before the scheduler sets the rates of the next step
        value = torch.as_tensor(loss).detach()
        if scheduler is not None:
            scheduler.step(*([value] if isinstance(scheduler, ReduceLROnPlateau) else []))
        yield Step(number, value, perf_counter() - start, lrs)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return {name of a parameter group, or its index if it has no name: its learning rate now, NaN if it has none}."""
    lrs = {name_of_group(position, group): group.get("lr") for position, group in enumerate(optimizer.param_groups)}
    return {name: nan if lr is None else float(lr) for name, lr in lrs.items()}


def name_of_group(position: int, group: dict[str, Any]) -> str:
    """Return the name of the parameter group at this index of an optimizer: the index itself if it has none."""
    return str(group.get("name", position))


def backward(task: Task, model: nn.Module, batches: Iterable[Any], size: int) -> Tensor:
    """Add the gradients of the mean loss of `size` batches to those of the parameters, batch by batch; return that loss."""
    losses = []
    for batch in batches:
        loss = task(model, batch) / size
        if loss.requires_grad:  # False if everything is frozen
            loss.backward()
        losses.append(loss.detach())
    assert len(losses) == size, f"a step of {size} batches was given {len(losses)}"
    return torch.stack(losses).sum() if size > 1 else losses[0]

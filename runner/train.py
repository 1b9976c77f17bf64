"""The loop: plain PyTorch that knows nothing of freezing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from inspect import signature
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Step:
    """One finished step. `loss` stays on its device; `lrs` are the groups' rates that the step used; time without data."""

    number: int
    loss: Tensor
    seconds: float
    lrs: dict[str, float]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    task: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    scheduler: Any = None,
    clip: float | None = None,
    zero_grad_to_none: bool = True,
) -> Iterator[Step]:
    """Train for one step a batch and yield each."""
    model.train()
    evaluates_again = _requires(optimizer.step, "closure")
    wants_loss = scheduler is not None and _requires(scheduler.step, "metrics")
    for number, batch in enumerate(batches, 1):
        start = perf_counter()
        lrs = {group["name"]: group["lr"] for group in optimizer.param_groups}
        evaluate: Any = partial(backward, model, optimizer, task, batch, clip, zero_grad_to_none)
        if evaluates_again:  # LBFGS, which takes several looks at a batch
            loss = torch.as_tensor(optimizer.step(evaluate)).detach()
        else:
            loss = evaluate().detach()
            optimizer.step()
        if scheduler is not None:
            scheduler.step(*[loss] if wants_loss else [])
        yield Step(number, loss, perf_counter() - start, lrs)


def backward(
    model: nn.Module,
    optimizer: Optimizer,
    task: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    clip: float | None,
    zero_grad_to_none: bool,
) -> Tensor:
    """The loss of one batch, its gradients computed and clipped."""
    optimizer.zero_grad(set_to_none=zero_grad_to_none)
    loss = task(model, batch)
    if loss.requires_grad:  # False where everything is frozen
        loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    return loss


def _requires(call: Callable[..., Any], argument: str) -> bool:
    parameter = signature(call).parameters.get(argument)
    return parameter is not None and parameter.default is parameter.empty

"""What a run wraps around its task: autocast, and the check that the loss is a scalar."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import ConfigError
from runner.training.loop import Task
from runner.training.tasks.wording import described


def with_autocast(task: Task, device: torch.device) -> Task:
    """Return a task that calls `task(model, batch)` under autocast for the type of `device`, and returns its loss.

    Matrix products are then computed in bfloat16, while the parameters keep their own dtype.
    Source: https://docs.pytorch.org/docs/stable/amp.html
    """
    return partial(_call_with_autocast, task, device)  # unlike a closure, a partial is deep-copied with its task


def _call_with_autocast(task: Task, device: torch.device, model: nn.Module, batch: Any) -> Tensor:
    """Return the loss `task(model, batch)`, computed under autocast to bfloat16 for the type of `device`."""
    with torch.autocast(device.type, torch.bfloat16):
        return task(model, batch)


def scalar_loss(task: Task, model: nn.Module, batch: Any) -> Tensor:
    """Return the loss `task(model, batch)`. Raises ConfigError if that is no tensor with a single value."""
    loss = task(model, batch)
    if not isinstance(loss, Tensor) or loss.dim():
        raise ConfigError(f"the task returned {described(loss)}; it must return the loss as a tensor of shape ()")
    return loss

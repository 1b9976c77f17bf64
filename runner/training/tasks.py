"""Tasks: a task is any callable `task(model, batch)` that returns the loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.errors import ConfigError
from runner.training.loop import Task


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


# The end of messages about a model or data for which `Classification` is not made.
OWN_TASK = ": write a function (model, batch) -> loss; give task=custom task._target_=my.task ++task._partial_=true"


class Classification:
    """A task: called with a model and a batch (x, y), it returns the loss.

    The loss is the mean cross entropy of the model's logits (N, classes) and the targets y (N,). Raises ConfigError if the
    batch is no pair, if the model does not return a score for each sample and class, if a target is not below the number of
    classes (on a GPU, CUDA fails with an assertion instead), or if BatchNorm cannot normalise because the batch has only one
    sample.
    """

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ConfigError(f"the data gave {described(batch)} as a batch; this task needs a pair (x, y){OWN_TASK}")
        x, y = batch
        try:
            logits = model(x)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise ConfigError(
                    f"data.batch_size={len(x)}: BatchNorm cannot normalise one value per channel; give 2 or more, "
                    "or keep it in eval mode with freeze.buffers=frozen"
                ) from error
            raise
        if not isinstance(logits, Tensor) or logits.dim() == 0 or (logits.dim() == 1 and y.dim() == 1):
            raise ConfigError(f"the model returned {described(logits)}; this task needs (N, classes) logits{OWN_TASK}")
        try:
            return functional.cross_entropy(logits, y)
        except ValueError as error:
            raise ConfigError(
                f"the model returned {described(logits)} for targets of shape {tuple(y.shape)}: {error}{OWN_TASK}"
            ) from error
        except IndexError as error:
            raise ConfigError(
                f"data: a target is outside the head's {logits.shape[1]} classes (targets run from {int(y.min())} to "
                f"{int(y.max())}); give model.classes"
            ) from error


def described(value: object) -> str:
    """Return a value in words for a message: `a tensor of shape (4,)`, or its type, such as `a tuple of 3`."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")

"""How a batch becomes a loss: any callable `task(model, batch) -> loss`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.errors import ConfigError
from runner.training.data import Batch


def in_bfloat16(task: Callable[[nn.Module, Any], Tensor], device: torch.device) -> Callable[[nn.Module, Any], Tensor]:
    """The task under autocast: matrix products in bfloat16, parameters as they are.

    Source: https://docs.pytorch.org/docs/stable/amp.html
    """

    return partial(_under_autocast, task, device)  # which copies as a whole, as a function in here would not


def _under_autocast(task: Callable[[nn.Module, Any], Tensor], device: torch.device, model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16):
        return task(model, batch)


class Classification:
    """Mean cross entropy of (N, classes) logits against (N,) targets.

    Raises ConfigError for targets outside the head's classes (on a CPU; a GPU reports them from its own assertion) and
    for a batch of one that BatchNorm cannot normalise.
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        try:
            logits = model(x)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise ConfigError(
                    f"data.batch_size={len(x)}: BatchNorm cannot normalise one value per channel; give 2 or more, "
                    "or hold it in eval mode with freeze.buffers=frozen"
                ) from error
            raise
        if not isinstance(logits, Tensor):
            raise ConfigError(
                f"the model gave a {type(logits).__name__}; this task needs a tensor of (N, classes) logits: "
                "write a function (model, batch) -> loss, and give task=custom task._target_=my.task ++task._partial_=true"
            )
        try:
            return functional.cross_entropy(logits, y)
        except IndexError as error:
            raise ConfigError(
                f"data: a target lies outside the head's {logits.shape[1]} classes (targets run from {int(y.min())} to "
                f"{int(y.max())}); give model.classes"
            ) from error

"""A task as a run calls it: under autocast where that is asked for, with one scalar as its result."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import ConfigError
from runner.training.tasks.model_losses import sum_of
from runner.training.tasks.task import TaskResult
from runner.training.tasks.wording import described


class TrainedTask:
    """Calls a task, a function (model, batch) -> loss, and keeps the parts of its losses.

    `task`: returns a scalar, or {name: scalar}, whose sum is the loss; or an object with a method `run` that returns a
    TaskResult. `autocast`: the type of the device, such as `cpu`, on which matrix products are computed in bfloat16, while
    the parameters keep their dtype; None for no autocast.
    Source: https://docs.pytorch.org/docs/stable/amp.html
    """

    def __init__(self, task: Any, autocast: str | None = None) -> None:
        self.task, self.autocast = task, autocast
        self.parts: list[dict[str, Tensor]] = []  # of the losses since `take_parts` was called

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss, of shape (). Raises ConfigError if the task returns anything else."""
        result = self.run(model, batch)
        self.parts.append({name: part.detach() for name, part in result.parts.items()})
        return result.loss

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "parts": []}  # a copy begins without any

    def run(self, model: nn.Module, batch: Any) -> TaskResult:
        """Return the loss with what it was taken of. Raises ConfigError if the task returns no loss."""
        with self._precision():
            result = (self.task.run if _has_run(self.task) else self.task)(model, batch)
        if isinstance(result, TaskResult):
            return result
        parts = dict(result) if isinstance(result, Mapping) else {"loss": result}
        if not parts or not all(isinstance(part, Tensor) and not part.dim() for part in parts.values()):
            raise ConfigError(f"the task returned {described(result)}; it must return the loss as a tensor of shape ()")
        return TaskResult(sum_of(parts), parts if isinstance(result, Mapping) else {})

    def _precision(self) -> AbstractContextManager[Any]:
        """Return the context manager in which the task runs."""
        return torch.autocast(self.autocast, torch.bfloat16) if self.autocast else nullcontext()

    def take_parts(self, calls: int) -> dict[str, Tensor]:
        """Return {name: part of the loss}, the mean over the first `calls` losses since the last call; then forget them."""
        taken, self.parts = self.parts[:calls], []
        names = dict.fromkeys(name for parts in taken for name in parts)
        return {name: torch.stack([parts[name] for parts in taken if name in parts]).sum() / len(taken) for name in names}


def _has_run(task: Any) -> bool:
    """Return whether a task has a method `run`, and no class derived from the one that has it calls the task differently."""
    owners = (vars(each) for each in type(task).__mro__)
    return next(("run" in owner for owner in owners if "run" in owner or "__call__" in owner), False)

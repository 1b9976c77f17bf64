"""The task that a caller in Python gives: by a loss, by a function of its own, or by neither."""

from __future__ import annotations

from typing import Any

from runner.errors import ConfigError, short_repr
from runner.training.loop import Task
from runner.training.tasks.task import BatchTask


def given_task(loss: Any = None, task: Any = None) -> Task:
    """Return the task that a loss, or a task itself, stands for; with neither, that of `task.loss=auto`.

    `loss`: a function (output, target) or None. `task`: a function (model, batch) -> loss or None. Raises ConfigError if one
    of them is something else, or if both are given.
    """
    if isinstance(loss, type):
        raise ConfigError(f"loss is the class {loss.__name__}; give an object of it, {loss.__name__}()")
    if loss is not None and not callable(loss):
        raise ConfigError(f"loss is {short_repr(loss)}; give a function (output, target) or None; patterns are frozen=[...]")
    if loss is not None and task is not None:
        raise ConfigError("give a loss, a function (output, target), or a task, a function (model, batch) -> loss; not both")
    if task is None:
        return BatchTask(loss="auto" if loss is None else loss)
    if not callable(task) or isinstance(task, type):
        raise ConfigError(f"task is {short_repr(task)}; give a function (model, batch) -> loss")
    found: Task = task
    return found

"""Copies of a model and a task, on which a method tries a training step before the training begins."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example, Task


def copied_together(model: nn.Module, task: Task) -> tuple[nn.Module, Task]:
    """Return copies of a model and a task; a task that refers to the model then refers to the copy.

    Raises SkippedError if they cannot be copied, as is the case for a tensor with a history as an attribute.
    """
    try:
        return copy.deepcopy((model, task))
    except TimeoutError:  # of the run, which may end any line
        raise
    except Exception as error:
        raise SkippedError(f"model and task cannot be copied to look for the frozen prefix: {error}") from error


def trial_copy(model: nn.Module, selection: Selection, example: Example) -> tuple[nn.Module, Example]:
    """Return a copy of the model in the mode that it has in the training, and the example with a copy of its task.

    Modules that `selection` keeps in eval mode are in eval mode; all others are in training mode. Raises SkippedError if
    model and task cannot be copied.
    """
    copied, task = copied_together(model, example.task)
    for name, module in copied.named_modules():
        module.training = name not in selection.modules
    return copied, replace(example, task=task)

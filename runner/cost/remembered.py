"""Steps that are counted once: in a process, and in all processes of a sweep if its runs share what they compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

from torch import Tensor

from runner.cost.batches import Shapes
from runner.cost.copies import ModelCopy, count_step
from runner.cost.flops import StepCount
from runner.sharing.fingerprint import Fingerprint, NotComparableError
from runner.sharing.folder import Sharing
from runner.tensors import tensor_entries
from runner.training.loop import Task

_counts: dict[str, StepCount] = {}


def counting_once(model: ModelCopy, task: Task, depends_on: Any, sharing: Sharing) -> Callable[[Any, Shapes], StepCount]:
    """Return a function (batch, its shapes) -> the count of a step of a copy without values, which counts equal steps once.

    Equal are the code and the attributes of the model and of the task, and all of the batch but the values of its tensors.
    Nothing is remembered if one of them cannot be compared. `depends_on`: what the count depends on besides.
    """
    own = {id(entry.tensor) for entry in tensor_entries(model.model).values()}  # which have no values
    settings = [sharing.settings, depends_on, model.structure]

    @cache
    def objects() -> str:
        return Fingerprint(lambda part: id(part) in own).add(model.model).add(task).hexdigest()

    def count(batch: Any, shapes: Shapes) -> StepCount:
        try:
            forms = Fingerprint(lambda part: isinstance(part, Tensor)).add(batch).hexdigest()
            key = json.dumps([settings, objects(), forms], sort_keys=True, default=str)
        except NotComparableError:
            return count_step(model, task, batch)
        if key in _counts:
            return _counts[key]
        compute = lambda: asdict(count_step(model, task, batch))  # noqa: E731
        fields = sharing.folder.once("counts", key, compute, keep=_is_general) if sharing.folder else compute()
        if _is_general(fields):
            _counts[key] = _from_json(fields)
        return _from_json(fields)

    return count


def _is_general(fields: dict[str, Any]) -> bool:
    """Return whether a count, by its fields, is that of every step which is equal but for values."""
    return not fields["depends_on_values"]


def _from_json(fields: dict[str, Any]) -> StepCount:
    """Return a count from its fields as JSON knows them, which has lists in place of tuples."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return StepCount(**values)

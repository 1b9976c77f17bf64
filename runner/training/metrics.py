"""Metrics of a model's scores over many batches: any object with `update(scores, target)` and `compute()`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from math import nan
from typing import Any

import torch
from torch import Tensor

from runner.contract import Note
from runner.errors import ConfigError

IGNORED = -100  # a target that counts for nothing, as in torch's cross entropy
HALF = (torch.float16, torch.bfloat16)


def has_classes(scores: Tensor, target: Tensor) -> bool:
    """Return whether `scores` has a score for each class in dimension 1, and `target` an integer class for each of them."""
    is_class = not (target.is_floating_point() or target.is_complex() or target.dtype is torch.bool)
    without_classes = (*scores.shape[:1], *scores.shape[2:])
    return is_class and scores.dim() == target.dim() + 1 and scores.shape[1] > 1 and target.shape == without_classes


class RunningMetric:
    """One metric, built when the first scores are known, so that the number of classes need not be given.

    Args:
        name: the name in messages, such as `F1Score`.
        make: a class or function that returns the metric. Of the arguments `task`, `num_classes` and `ignore_index`, it is
            given those that it takes and that the scores tell.
        note: called with each warning of the metric.
    """

    def __init__(self, name: str, make: Callable[..., Any], note: Note) -> None:
        self.name, self.make, self.note = name, make, note
        self.metric: Any = None

    def update(self, scores: Any, target: Any) -> None:
        """Add the scores and targets of a batch. Raises ConfigError if there are none, or if the metric does not fit."""
        if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
            raise ConfigError(
                f"metrics: {self.name} needs scores and targets, and this task gives a loss alone; give another task, "
                "or metrics=[]"
            )
        shapes = f"scores of shape {tuple(scores.shape)} and targets of shape {tuple(target.shape)}"
        if self.metric is None:
            with self._worded(f"cannot be built for {shapes}", "; give its arguments: metrics=[{_target_: PATH, ...}]"):
                self.metric = self._build(scores, target)
        with self._worded(f"does not fit {shapes}"):
            self.metric.update(scores.float() if scores.dtype in HALF else scores, target)

    def compute(self) -> float:
        """Return the value over all batches; raise ConfigError if the metric cannot compute it or has several values."""
        with self._worded("cannot be computed"):
            value = self.metric.compute()
            count = value.numel() if isinstance(value, Tensor) else len(value) if hasattr(value, "__len__") else 1
            if count == 1 and not isinstance(value, dict):
                return float(value)
        raise ConfigError(f"metrics: {self.name} gives {count} values; give a metric with one, such as with average=macro")

    def _build(self, scores: Tensor, target: Tensor) -> Any:
        """Return the metric, on the device of the scores. Raises TypeError if it has no `update` or no `compute`."""
        known: dict[str, Any] = {"ignore_index": IGNORED}
        if has_classes(scores, target):
            known |= {"task": "multiclass", "num_classes": scores.shape[1]}
        taken = signature(self.make).parameters
        metric = self.make(**{name: value for name, value in known.items() if name in taken})
        if not callable(getattr(metric, "update", None)) or not callable(getattr(metric, "compute", None)):
            raise TypeError(f"a {type(metric).__name__} has no methods update(scores, target) and compute()")
        return metric.to(scores.device) if callable(getattr(metric, "to", None)) else metric

    @contextmanager
    def _worded(self, problem: str, advice: str = "") -> Iterator[None]:
        """Raise what the block raises as a ConfigError with the name of the metric, and note its warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except (ConfigError, TimeoutError):  # a timeout of the run may end any line
                raise
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise ConfigError(f"metrics: {self.name} {problem}: {type(error).__name__}: {reason}{advice}") from error
        for warning in caught:
            self.note(f"metrics: {self.name}: {' '.join(str(warning.message).split())}")


def accuracy_counts(scores: Any, target: Any) -> Tensor | None:
    """Return (how many targets have the highest score, how many count, how many of those have scores without NaN).

    That is one tensor; None where there are no classes. A target whose scores have a NaN has no highest score.
    """
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor) or not has_classes(scores, target):
        return None
    counts, is_known = target != IGNORED, ~scores.isnan().any(1)
    right = (scores.argmax(1) == target) & is_known
    return torch.stack([right.sum(), counts.sum(), (counts & is_known).sum()])


def accuracy_of(counts: Sequence[Tensor | None]) -> float | None:
    """Return the share of right answers over all batches, from what `accuracy_counts` returned for each.

    Returns None if it returned None for one of them, or if no target counts; NaN if all scores have a NaN.
    """
    known = [count for count in counts if count is not None]
    right, total, with_scores = torch.stack(known).sum(0).tolist() if known else (0, 0, 0)
    if not total or len(known) < len(counts):
        return None
    return right / total if with_scores else nan

"""Measure how well a model does on held-out data, before, during and after its training, without a trace in the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import fsum, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from runner.contract import Note, ignore_note
from runner.errors import ConfigError, SkippedError, listed, place_in_user_code
from runner.kept_state import in_eval_mode
from runner.seeding import preserve_random_state, preserve_settings, seed_all
from runner.tensors import tensors_in
from runner.training.data.steps import StepBatches
from runner.training.metrics import RunningMetric, accuracy_counts, accuracy_of


class EvaluationError(RuntimeError):
    """Raised if the model or the task raises in an evaluation; the message says where, and what was raised."""


Values = dict[str, float | None]
"""The result of an evaluation: `loss`, `accuracy` where there are classes, and each metric; None for NaN and infinity."""


def evaluate(
    model: nn.Module,
    task: Any,
    batches: Iterable[Any],
    metrics: Mapping[str, tuple[str, Callable[..., Any]]] | None = None,
    *,
    seed: int = 0,
    note: Note = ignore_note,
) -> Values:
    """Return {"loss": ..., "accuracy": ..., KEY: value of a metric} of a model in eval mode, and leave all as it was.

    The loss is the mean over the samples: the loss of each batch is weighted by its number of samples. `accuracy` is the
    share of targets, of all batches together, whose class has the highest score; targets of -100 do not count, and there is
    no accuracy where the task gives no scores of classes. Modes, bits, grad mode, random states and settings of torch are
    restored; a note names the tensors that the model has written.

    `task`: a task with `run(model, batch)`, or a function (model, batch) -> loss. `metrics`: {key: (name, class or function
    that makes the metric)}. `seed`: the random generators are seeded with it, so that evaluations can be compared. Raises
    EvaluationError if the forward pass fails, and ConfigError if there is no batch or if a metric does not fit.
    """
    running = {key: RunningMetric(name, make, note) for key, (name, make) in (metrics or {}).items()}
    losses, sizes, counts = [], [], []
    with preserve_settings(), preserve_random_state(), in_eval_mode(model) as written, torch.no_grad():
        seed_all(seed)
        for number, batch in enumerate(batches, 1):
            loss, scores, target = _forward(model, task, batch, number)
            losses.append(loss)
            sizes.append(_sample_count(batch, target))
            counts.append(accuracy_counts(scores, target))
            for metric in running.values():
                metric.update(scores, target)
        if not losses:
            raise ConfigError("evaluate: the held-out data has no sample; hold out more (data.holdout, data.test)")
        weighted = zip(torch.stack(losses).tolist(), sizes, strict=True)
        values: dict[str, float] = {"loss": fsum(loss * size for loss, size in weighted) / sum(sizes)}
        if (share := accuracy_of(counts)) is not None:
            values["accuracy"] = share
        values |= {key: metric.compute() for key, metric in running.items()}
    if written:
        note(f"evaluate: in eval mode the model writes {listed(written, most=4)}; each evaluation puts the old values back")
    return {key: value if isfinite(value) else None for key, value in values.items()}


def _forward(model: nn.Module, task: Any, batch: Any, number: int) -> tuple[Tensor, Any, Any]:
    """Return (loss, scores, target) of a batch; the last two are None where the task gives none.

    Raises EvaluationError if the task raises, and ConfigError if the loss is not a single number. `number`: the number of
    the batch.
    """
    where = f"evaluate: held-out batch {number}, in eval mode"
    try:
        if hasattr(task, "run"):
            result = task.run(model, batch)
            loss, scores, target = result.loss, result.scores, result.target
        else:
            loss, scores, target = task(model, batch), None, None
    except (SkippedError, TimeoutError):  # a timeout of the run may end any line
        raise
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        parts = (f"in evaluation, held-out batch {number}", place_in_user_code(error), type(error).__name__, reason)
        raise EvaluationError(": ".join(filter(None, parts))) from error
    if isinstance(loss, Mapping):  # of a function that returns the parts of its loss
        loss = sum(loss.values())
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ConfigError(f"{where}: the task returned a {type(loss).__name__}; it must return the loss, a single number")
    return loss.detach().reshape(()), scores, target


def _sample_count(batch: Any, target: Any) -> int:
    """Return the number of samples in a batch: the length of its target, else of its first part; 1 if it has no length."""
    if isinstance(target, Tensor) and target.dim():
        return len(target)
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    if parts and isinstance(parts[0], (tuple, list)):  # one item a sample, as in detection
        return len(parts[0])
    return next((len(tensor) for tensor in tensors_in(parts) if tensor.dim()), 1)


@dataclass
class Evaluation:
    """The evaluations of one run, and their results.

    Attributes:
        measure: evaluates the model as it is now; None: nothing is evaluated.
        after_each_pass: whether to evaluate after each pass over the data too.
        record: the entry `evaluation` of `run.json`: the values `before` and `after` the training, and, for each pass over
            the data, those after it under `passes`; empty without evaluation.
    """

    measure: Callable[[], Values] | None = None
    after_each_pass: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    def before(self) -> None:
        """Evaluate the model before its training."""
        if self.measure is not None:
            self.record["before"] = self.measure()

    def between_passes(
        self, steps: Iterable[StepBatches], paused: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[StepBatches]:
        """Yield the batches of the steps of a run; before the first step of each later pass, evaluate the model if asked to.

        That is done when the step is requested, since a freezing method may change the model until then. `paused`: returns
        a context in which the audit of the run sees nothing.
        """
        epoch = None
        for step in steps:
            if self.measure is not None and self.after_each_pass and epoch not in (None, step.epoch):
                with paused():
                    self.record.setdefault("passes", []).append(self.measure())
            epoch = step.epoch
            yield step

    def after(self) -> None:
        """Evaluate the model after its training."""
        if self.measure is not None:
            self.record["after"] = self.measure()
            if self.after_each_pass:
                self.record.setdefault("passes", []).append(self.record["after"])

"""Measure what a run costs: the FLOPs and bytes of a step, which do not depend on how busy the machine is, and its seconds.

The trained weights are the same to the last bit, whether or not anything is measured.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.contract import COSTS, Cost, Note
from runner.cost.answers import FrozenPart, explain_small_saving
from runner.cost.batches import FedBatches, count_notes
from runner.cost.flops import REAL, ModelCopy, StepCount, count_step
from runner.cost.shares import Shares, bytes_held, costs_of_count, shares_of_unfrozen, total_bytes
from runner.freezing.selection import Selection
from runner.tensors import TensorEntry
from runner.tensors.optimizer_state import needs_closure
from runner.training.loop import Task

FREEZING_SETTINGS = ("method", "freeze", "schedule")  # config keys that do not matter when nothing is frozen
PEAK_COUNTED = "tensors of forward and backward counted, without the scratch memory of kernels"


_count_cache: dict[tuple[Any, ...], StepCount] = {}  # so that a sweep counts once for equal model, input and frozen layers
Entries = Mapping[str, TensorEntry]  # {name of a tensor: its entry}


@dataclass
class Meter:
    """The base class of all meters, and the meter for `cost=off`: a run calls its methods, but they measure nothing.

    Attributes:
        settings: {config key: value} for the keys that determine the FLOPs of a step.
        device: the device of the model.
        note: a function that shows a message to the user; called with the reason if a cost cannot be measured.
    """

    settings: Mapping[str, Any]
    device: torch.device
    note: Note

    def on_model_built(self, model: nn.Module) -> None:
        """Do nothing; a run calls this method with the model before anything is frozen."""

    def on_phase_prepared(self, model: nn.Module) -> None:
        """Do nothing; called with the model when the freezing method has prepared it for a phase, before the first step."""

    def wrap_task(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        """Return the task to train with, a function (model, batch) -> loss; here `task` itself.

        Called before the freezing method registers its hooks. Callbacks added to `undo` are called at the end of the run.
        """
        return task

    def watch_batches(self, batches: Iterable[Any], step: int, optimizer: Optimizer, undo: ExitStack) -> Iterator[Any]:
        """Yield the batches unchanged; call `on_batch` just before each, and before the first `on_phase_begin` too.

        `batches`: the batches of a phase, that is, a span of steps in which the same layers are frozen. `step`: the number
        of the first step of the phase. Callbacks added to `undo` are called at the end of the run.
        """
        for position, batch in enumerate(batches):
            if not position:
                self.on_phase_begin(step, optimizer, undo)
            self.on_batch(batch)
            yield batch

    def on_phase_begin(self, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        """Do nothing; called before the first step of each phase (a span of steps in which the same layers are frozen).

        `step`: the number of its first step, 1 at the start of the run. Callbacks added to `undo` are called at the end of
        the run.
        """

    def on_batch(self, batch: Any) -> None:
        """Do nothing; called with each batch before its step."""

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Leave what the block does, such as an evaluation, out of the costs."""
        yield

    def read_costs(
        self, model: nn.Module, optimizer: Optimizer, selection: Selection, entries: Entries, skipped: Shares
    ) -> Cost:
        """Return {name of a cost: its value}, here an empty dict; called after the last step of a run.

        `model`: the trained model. `selection`: what is frozen in the model. `entries`: {name: entry} of all tensors that
        the model had before the freezing method changed it. `skipped`: {module name: share from 0 to 1}, the share of the
        steps in which the method skipped the module; only steps since the set of frozen layers last changed count.
        """
        return {}

    @contextmanager
    def note_errors(self, problem: str) -> Iterator[None]:
        """Suppress an exception raised in the `with` block, and show it to the user in a note with the text `problem`."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            self.note(f"cost: {problem}: {type(error).__name__}: {reason}")


class CountingMeter(Meter):
    """The meter for `cost=count`: adds up the bytes of gradients and optimizer state, and counts FLOPs on a model copy.

    FLOPs are counted after the training. Counting runs the model's code, which could otherwise influence the training, for
    example through a global cache.
    """

    unfrozen: ModelCopy | None = None  # a copy of the model before anything was frozen, in which all can train
    prepared: ModelCopy | None = None  # a copy of the model before the first step of the last phase
    peak_so_far = 0  # bytes of the device's memory, before the last evaluation
    task: Task

    def on_model_built(self, model: nn.Module) -> None:
        """Keep a copy of the model in which everything can train, to count later what it costs to train all of it.

        On a CUDA device, also reset torch's record of the peak memory.
        """
        self.fed = FedBatches()
        with self.note_errors("the unfrozen baseline is not known"):
            self.unfrozen = ModelCopy.unfrozen(model)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Leave what the block does out of the costs: on a CUDA device, out of torch's record of the peak memory."""
        if self.device.type == "cuda":
            self.peak_so_far = max(self.peak_so_far, torch.cuda.max_memory_allocated(self.device))
        yield
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_phase_prepared(self, model: nn.Module) -> None:
        """Keep a copy of the model, whose state is then as that of `unfrozen`: not yet changed by steps."""
        with self.note_errors("the cost of a step is not known"):
            self.prepared = ModelCopy.of(model)

    def wrap_task(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        """Return `task` unchanged, and keep a copy of it for counting after the run.

        If the task cannot be copied, `task` itself is kept.
        """
        self.task = task
        with self.note_errors("the task cannot be copied, and is counted as it is"):
            self.task = copy.deepcopy(task)  # because a task may have a state
        return task

    def on_batch(self, batch: Any) -> None:
        """Keep the first batch of each shape: FLOPs are counted for these shapes."""
        self.fed.add(batch)

    def read_costs(
        self, model: nn.Module, optimizer: Optimizer, selection: Selection, entries: Entries, skipped: Shares
    ) -> Cost:
        """Return {name of a cost: its value}; the value is None if the cost is not known.

        Most values are bytes or FLOPs of a step of this run, or shares: this run's cost divided by that of a step with
        nothing frozen. A few are texts, such as how the peak memory was measured. The arguments are those of
        `Meter.read_costs`.
        """
        cost: Cost = dict.fromkeys(COSTS)
        with self.note_errors("bytes of gradients and optimizer state are not known"):
            parameters = [entry.tensor for entry in entries.values() if entry.kind == "parameter"]
            cost |= bytes_held(parameters, optimizer, selection)
        if self.device.type == "cuda":
            cost["peak_memory_bytes"] = max(self.peak_so_far, torch.cuda.max_memory_allocated(self.device))
            cost["peak_memory_by"] = "torch.cuda.max_memory_allocated"
        if not self.fed.steps:
            return cost
        settings = [dict(self.settings), sorted(selection.parameters), sorted(selection.modules)]
        with self.note_errors("FLOPs and saved bytes are not known"):
            counted = self.count_prepared(model, settings)
            cost |= costs_of_count(counted, skipped)
            if None not in (cost["parameter_bytes"], cost["saved_bytes"]) and cost["peak_memory_bytes"] is None:
                cost["peak_memory_bytes"], cost["peak_memory_by"] = self.peak_bytes(cost, counted, model), PEAK_COUNTED
            baseline = self.count_unfrozen(counted, entries)
            if baseline is not None:
                cost |= shares_of_unfrozen(cost, baseline, optimizer)
                frozen = FrozenPart.of(entries, selection)
                cost["why_small"] = explain_small_saving(cost.get("flops_share"), counted, frozen)
            for text in count_notes([counted, *([baseline] if baseline else [])], self.fed):
                self.note(f"cost: {text}")
        if needs_closure(optimizer):
            self.note("cost: the optimizer's step runs forward and backward itself, several times; the FLOPs are of one")
        return cost

    def count_prepared(self, model: nn.Module, settings: Any) -> StepCount:
        """Return the FLOPs and memory of a step of this run, counted on the copy of the model before the first step.

        If that copy has no values and they are needed, the trained `model` is used.
        """
        if self.prepared is None:
            return self.count(model, settings)
        try:
            return self.count(self.prepared, settings)
        except Exception:
            if self.prepared.mode is None:
                raise
            return self.count(model, settings)

    def count(self, model: nn.Module | ModelCopy, settings: Any) -> StepCount:
        """Return the FLOPs and memory of a step of `model`, the mean over the shapes of batches that the run was fed.

        `settings`: what the count depends on besides the shapes and the structure of the model. If these are equal, a step
        without values is counted only once.
        """
        if not isinstance(model, ModelCopy) or model.mode is None:  # values may decide about such a step
            return self.fed.mean(lambda batch, shapes: count_step(model, self.task, batch), self.device)
        types = (type(model.model), type(self.task))
        depends_on = [settings, str(self.device), structure_of(model.model)]

        def count_once(batch: Any, shapes: Any) -> StepCount:
            key = (*types, json.dumps([*depends_on, shapes], sort_keys=True, default=str))
            if key not in _count_cache:
                _count_cache[key] = count_step(model, self.task, batch)
            return _count_cache[key]

        return self.fed.mean(count_once, self.device)

    def count_unfrozen(self, counted: StepCount, entries: Entries) -> StepCount | None:
        """Return the FLOPs and memory of a step with nothing frozen; None if there is no copy of the unfrozen model.

        `counted`, `entries`: see `copy_like`.
        """
        copied = self.copy_like(counted, entries)
        settings = {key: value for key, value in self.settings.items() if key not in FREEZING_SETTINGS}
        return self.count(copied, settings) if copied else None

    def copy_like(self, counted: StepCount, entries: Entries) -> ModelCopy | None:
        """Return the copy of the unfrozen model, with values if a count of the run's own step needed them; None without one.

        `counted`: the count. `entries`: {name: entry} of the tensors whose values the copy is given.
        """
        if self.unfrozen is None or self.unfrozen.mode is None or counted.counted_on != REAL:
            return self.unfrozen
        return self.unfrozen.with_values({name: entry.tensor for name, entry in entries.items()})

    def peak_bytes(self, cost: Cost, counted: StepCount, model: nn.Module) -> int:
        """Return the peak memory on a CPU: the bytes of model and optimizer state, plus the peak of a step with its batch.

        `cost`: the costs found so far. `counted`: the count of a step. The result excludes what the optimizer allocates
        within its step and what the freezing method keeps. It is a sum of tensor sizes, because the memory use that the
        operating system reports depends on what the process did before.
        """
        buffers = total_bytes(list(model.buffers()))
        return buffers + cost["parameter_bytes"] + cost["optimizer_state_bytes"] + counted.peak_bytes


def structure_of(model: nn.Module) -> list[Any]:
    """Return what decides, besides the code, how a step without values runs: modules, modes, tensors and flags."""
    modules = [(name, type(module).__qualname__, module.training) for name, module in model.named_modules()]
    tensors = chain(model.named_parameters(), model.named_buffers())
    return [modules, [(name, tuple(t.shape), str(t.dtype), t.requires_grad) for name, t in tensors]]

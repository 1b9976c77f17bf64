"""Measure what a run costs: the FLOPs and bytes of a step, which do not depend on how busy the machine is, and its seconds.

The trained weights are the same to the last bit, whether or not anything is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import COSTS, Cost, Note
from runner.cost.batches import FedBatches, Shapes, count_notes
from runner.cost.copies import ModelCopy, count_step
from runner.cost.flops import REAL, StepCount
from runner.cost.phases import (
    MOST_BYTES,
    MOST_SETS,
    Entries,
    MeteredSet,
    costs_of_run,
    held_in_run,
    names_frozen,
    phase_notes,
    why_small_of_run,
)
from runner.cost.remembered import counting_once
from runner.cost.shares import bytes_held, shares_of_unfrozen, state_per_byte, total_bytes
from runner.freezing.selection import Selection
from runner.sharing.folder import Sharing
from runner.tensors import tensor_entries
from runner.tensors.optimizer_state import needs_closure
from runner.training.loop import Task

NOT_SHARED = Sharing()
FREEZING_SETTINGS = ("method", "freeze", "schedule")  # config keys that do not matter when nothing is frozen


@dataclass
class Meter:
    """The base class of all meters, and the meter for `cost=off`: a run calls its methods, but they measure nothing.

    Attributes:
        settings: {config key: value} for the keys that determine the FLOPs of a step.
        device: the device of the model.
        note: a function that shows a message to the user; called with the reason if a cost cannot be measured.
        extra_bytes: memory that a schedule keeps besides, such as a copy of the weights; a part of the peak memory.
        sharing: what the run shares with the others of a sweep.
        skips_layers: whether steps may run without frozen layers whose outputs are stored, and take less memory then.
        noted: what `note_errors` has told the user.
        flops_by_module: FLOPs of the forward pass of each module in the last phase; empty if they were not counted.
    """

    settings: Mapping[str, Any]
    device: torch.device
    note: Note
    extra_bytes: int = 0
    sharing: Sharing = NOT_SHARED
    skips_layers: bool = False
    noted: set[str] = field(default_factory=set)
    flops_by_module: Mapping[str, int] = field(default_factory=dict)

    def on_model_built(self, model: nn.Module) -> None:
        """Do nothing; a run calls this method with the model before anything is frozen."""

    def on_phase_prepared(self, model: nn.Module, selection: Selection) -> None:
        """Do nothing; called with the model when the freezing method has prepared it for a phase, before the first step.

        A phase is a span of steps in which the same is frozen: `selection`.
        """

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

    def on_phase_end(self, parameters: Sequence[Tensor], optimizer: Optimizer, not_run: Mapping[str, int]) -> None:
        """Do nothing; called after the last step of each phase.

        `parameters`: all of the model that is trained. `not_run`: {module name: number of batches of this phase for which
        the method skipped the module's forward pass}.
        """

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Leave what the block does, such as an evaluation, out of the costs."""
        yield

    def read_costs(self, model: nn.Module, optimizer: Optimizer, entries: Entries) -> Cost:
        """Return {name of a cost: its value}, here an empty dict; called after the last step of a run.

        `model`: the trained model. `entries`: {name: entry} of all tensors that the model had before the freezing method
        changed it.
        """
        return {}

    @contextmanager
    def note_errors(self, problem: str) -> Iterator[None]:
        """Suppress an exception raised in the `with` block, and show it to the user once, after the text `problem`."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            text = f"cost: {problem}: {type(error).__name__}: {reason}"
            if text not in self.noted:
                self.note(text)
            self.noted.add(text)


class CountingMeter(Meter):
    """The meter for `cost=count`: adds up the bytes of gradients and optimizer state, and counts FLOPs on a model copy.

    FLOPs are counted after the training. Counting runs the model's code, which could otherwise influence the training, for
    example through a global cache.
    """

    unfrozen: ModelCopy | None = None  # a copy of the model before anything was frozen, in which all can train
    metered: MeteredSet  # of the phase that has begun last
    peak_so_far = 0  # bytes of the device's memory, before the last evaluation
    task: Task

    def on_model_built(self, model: nn.Module) -> None:
        """Keep a copy of the model in which everything can train, to count later what it costs to train all of it.

        On a CUDA device, also reset torch's record of the peak memory.
        """
        self.fed = FedBatches()
        self.sets: dict[frozenset[str], MeteredSet] = {}  # by the names of what is frozen
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

    def on_phase_prepared(self, model: nn.Module, selection: Selection) -> None:
        """Keep a copy of the model, once for each distinct set of what is frozen, to count later what a step costs.

        In the first phase its state is as that of `unfrozen`: not yet changed by steps.
        """
        names = names_frozen(selection)
        if names not in self.sets:
            self.sets[names] = MeteredSet(selection)
            if len(self.sets) <= MOST_SETS:
                size = total_bytes([*model.parameters(), *model.buffers()])
                with self.note_errors("the cost of a step is not known"):
                    may_have_values = len(self.sets) == 1 or len(self.sets) * size <= MOST_BYTES
                    self.sets[names].copied = ModelCopy.of(model, may_have_values=may_have_values)
        self.metered = self.sets[names]

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
        self.metered.fed[self.fed.add(batch)] += 1

    def on_phase_end(self, parameters: Sequence[Tensor], optimizer: Optimizer, not_run: Mapping[str, int]) -> None:
        """Measure the bytes of gradients and optimizer state, and note what the method skipped."""
        self.metered.not_run.update(not_run)
        end: tuple[Cost, float | None] = {}, None
        with self.note_errors("bytes of gradients and optimizer state are not known"):
            end = bytes_held(parameters, optimizer, self.metered.selection), state_per_byte(optimizer)
        self.metered.ends.append(end)

    def read_costs(self, model: nn.Module, optimizer: Optimizer, entries: Entries) -> Cost:
        """Return {name of a cost: its value}; the value is None if the cost is not known.

        Most values are bytes or FLOPs of a step of this run, or shares: this run's cost divided by that of a step with
        nothing frozen. FLOPs are the mean over the phases of the run, bytes those of the phase with most of them. A few
        values are texts, such as how the peak memory was measured. The arguments are those of `Meter.read_costs`.
        """
        sets = [each for each in self.sets.values() if each.batches]
        if not sets:
            return dict.fromkeys(COSTS)
        held, per_byte = held_in_run(sets)
        cost: Cost = dict.fromkeys(COSTS) | held
        on_device: Cost = {}
        if self.device.type == "cuda" and not self.skips_layers:
            on_device["peak_memory_bytes"] = max(self.peak_so_far, torch.cuda.max_memory_allocated(self.device))
            on_device["peak_memory_by"] = "torch.cuda.max_memory_allocated"
        with self.note_errors("FLOPs and saved bytes are not known"):
            counts = [(each, self.count_set(each, model, entries)) for each in sets[:MOST_SETS]]
            parameters = [entry.tensor for entry in entries.values() if entry.kind == "parameter"]
            self.flops_by_module = counts[-1][1].flops_by_module
            buffers = total_bytes([*parameters, *model.buffers()]) - total_bytes(parameters)  # a frozen one may be in both
            cost |= costs_of_run(counts, buffers + self.extra_bytes)
            baseline = self.count_unfrozen(cost["flops_counted_on"], entries)
            if baseline is not None:
                cost |= shares_of_unfrozen(cost, baseline, per_byte)
                cost["why_small"] = why_small_of_run(counts, baseline, entries)
            steps = [*(counted for _, counted in counts), *([baseline] if baseline else [])]
            for text in (*count_notes(steps, self.fed), *phase_notes(sets, self.extra_bytes)):
                self.note(f"cost: {text}")
        if needs_closure(optimizer):
            self.note("cost: the optimizer's step runs forward and backward itself, several times; the FLOPs are of one")
        return cost | on_device

    def count_set(self, metered: MeteredSet, model: nn.Module, entries: Entries) -> StepCount:
        """Return the FLOPs and memory of a step while one set is frozen, counted on the copy of the model from that time.

        If that copy has no values and they are needed, those of the trained `model` are used, or of `entries`.
        """
        selection, is_last = metered.selection, metered is self.metered
        settings = [dict(self.settings), sorted(selection.parameters), sorted(selection.modules)]
        if metered.copied is None:
            if not is_last:
                raise LookupError("there is no copy of the model as an earlier phase trained it")
            return self.count(model, settings, metered.fed)
        try:
            return self.count(metered.copied, settings, metered.fed)
        except Exception:
            if metered.copied.has_values:
                raise
            valued = model if is_last else metered.copied.with_values(values_of(entries) | values_of(tensor_entries(model)))
            return self.count(valued, settings, metered.fed)

    def count(self, model: nn.Module | ModelCopy, settings: Any, fed: Mapping[Shapes, int]) -> StepCount:
        """Return the FLOPs and memory of a step of `model`, the mean over the shapes of batches that it was fed.

        `settings`: what the count depends on besides the shapes and the structure of the model. If these are equal, a step
        without values is counted only once. `fed`: {shapes of a batch: number of batches}.
        """
        if not isinstance(model, ModelCopy) or model.has_values:  # values may decide about such a step
            return self.fed.mean(lambda batch, shapes: count_step(model, self.task, batch), self.device, fed)
        once = counting_once(model, self.task, [settings, str(self.device)], self.sharing)
        return self.fed.mean(once, self.device, fed)

    def count_unfrozen(self, counted_on: str, entries: Entries) -> StepCount | None:
        """Return the FLOPs and memory of a step with nothing frozen; None if there is no copy of the unfrozen model.

        `counted_on`, `entries`: see `copy_like`.
        """
        copied = self.copy_like(counted_on, entries)
        settings = {key: value for key, value in self.settings.items() if key not in FREEZING_SETTINGS}
        return self.count(copied, settings, self.fed.steps) if copied else None

    def copy_like(self, counted_on: str, entries: Entries) -> ModelCopy | None:
        """Return the copy of the unfrozen model, with values if a count of the run's own step needed them; None without one.

        `counted_on`: what that was counted on. `entries`: {name: entry} of the tensors whose values the copy is given.
        """
        if self.unfrozen is None or self.unfrozen.has_values or counted_on != REAL:
            return self.unfrozen
        return self.unfrozen.with_values(values_of(entries))


def values_of(entries: Entries) -> dict[str, Tensor]:
    """Return {name of a tensor: the tensor}."""
    return {name: entry.tensor for name, entry in entries.items()}

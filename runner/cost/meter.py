"""Measure what a run costs: the FLOPs and bytes of a step, which do not depend on how busy the machine is, and its seconds.

The trained weights are the same to the last bit, whether or not anything is measured.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import COSTS, COUNTED, Cost, Note
from runner.cost.flops import META, FakeCopy, StepCount, count_step, storages_in
from runner.freezing.selection import Selection
from runner.tensors import tensors_in
from runner.training.loop import Task, needs_closure

Shares = Mapping[str, float]  # {module name: share from 0 to 1}
FREEZING_SETTINGS = ("method", "freeze", "schedule")  # config keys that do not matter when nothing is frozen
PEAK_COUNTED = "tensors of forward and backward counted, without the scratch memory of kernels"
SMALL_SAVING = 0.9  # share of an unfrozen run's FLOPs; from here on `why_small` is filled in


_count_cache: dict[tuple[Any, ...], StepCount] = {}  # so that a sweep counts once for equal model, input and frozen layers


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

    def wrap_task(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        """Return the task to train with, a function (model, batch) -> loss; here `task` itself.

        Called before the freezing method registers its hooks. Callbacks added to `undo` are called at the end of the run.
        """
        return task

    def watch_first_batch(self, batches: Iterable[Any], step: int, optimizer: Optimizer, undo: ExitStack) -> Iterator[Any]:
        """Yield the batches unchanged, and call `on_phase_begin` just before the first one.

        `batches`: the batches of a phase, that is, a span of steps in which the same layers are frozen. `step`: the number
        of the first step of the phase. Callbacks added to `undo` are called at the end of the run.
        """
        for position, batch in enumerate(batches):
            if not position:
                self.on_phase_begin(batch, step, optimizer, undo)
            yield batch

    def on_phase_begin(self, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        """Do nothing; called before the first step of each phase (a span of steps in which the same layers are frozen).

        `batch`: the first batch of the phase. `step`: the number of its first step, 1 at the start of the run. Callbacks
        added to `undo` are called at the end of the run.
        """

    def read_costs(
        self, model: nn.Module, optimizer: Optimizer, selection: Selection, parameters: Sequence[Tensor], skipped: Shares
    ) -> Cost:
        """Return {name of a cost: its value}, here an empty dict; called after the last step of a run.

        `model`: the trained model. `selection`: what is frozen in the model. `parameters`: all parameters that the model had
        before the freezing method changed it. `skipped`: {module name: share from 0 to 1}, the share of the steps in which
        the method skipped the module; only steps since the set of frozen layers last changed count.
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

    fake_model: FakeCopy | None = None  # a copy of the model before anything was frozen, with tensors without values
    task: Task
    batch: Any = None  # the first batch of the run; FLOPs are counted for its shapes

    def on_model_built(self, model: nn.Module) -> None:
        """Keep a copy (without values) of the unfrozen model, to count later what it costs to train all of it.

        On a CUDA device, also reset torch's record of the peak memory.
        """
        with self.note_errors("the unfrozen baseline is not known"):
            self.fake_model = FakeCopy.copy_of(model)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def wrap_task(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        """Return `task` unchanged, and keep a copy of it for counting after the run.

        If the task cannot be copied, `task` itself is kept.
        """
        self.task = task
        with self.note_errors("the task cannot be copied, and is counted as it is"):
            self.task = copy.deepcopy(task)  # because a task may have a state
        return task

    def on_phase_begin(self, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        """Keep the first batch of the run, whose shapes FLOPs are counted for; do nothing if `step` is not 1."""
        if step == 1:
            self.batch = batch

    def read_costs(
        self, model: nn.Module, optimizer: Optimizer, selection: Selection, parameters: Sequence[Tensor], skipped: Shares
    ) -> Cost:
        """Return {name of a cost: its value}; the value is None if the cost is not known.

        Most values are bytes or FLOPs of a step of this run, or shares: this run's cost divided by that of a step with
        nothing frozen. A few are texts, such as how the peak memory was measured. The arguments are those of
        `Meter.read_costs`.
        """
        cost: Cost = dict.fromkeys(COSTS)
        with self.note_errors("bytes of gradients and optimizer state are not known"):
            cost |= bytes_held(parameters, optimizer, selection)
        if self.device.type == "cuda":
            cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
            cost["peak_memory_by"] = "torch.cuda.max_memory_allocated"
        if self.batch is None:
            return cost
        key = [dict(self.settings), sorted(selection.parameters), sorted(selection.modules), _shapes(self.batch)]
        with self.note_errors("FLOPs and saved bytes are not known"):
            types = (type(model), type(self.task))
            counted = _count_once(types, key, lambda: count_step(model, self.task, self.batch))
            cost |= {name: getattr(counted, name) for name in ("flops_backward", "saved_bytes")}
            not_computed = sum(share * counted.flops_by_module.get(name, 0) for name, share in skipped.items())
            cost["flops_forward"] = counted.flops_forward - round(not_computed)  # mean of the last phase's steps
            cost["flops_counted_on"] = counted.counted_on
            if cost["peak_memory_bytes"] is None and cost["parameter_bytes"] is not None:
                cost["peak_memory_bytes"], cost["peak_memory_by"] = self.peak_bytes(cost, counted, model), PEAK_COUNTED
            if baseline := self.count_unfrozen(counted):
                cost |= shares_of_unfrozen(cost, baseline, optimizer)
                cost["why_small"] = explain_small_saving(cost, counted, selection)
        if needs_closure(optimizer):
            self.note("cost: the optimizer's step runs forward and backward itself, several times; the FLOPs are of one")
        return cost

    def count_unfrozen(self, counted: StepCount) -> StepCount | None:
        """Return the FLOPs and memory of a step with nothing frozen, counted on the copy of the unfrozen model.

        `counted`: the count of this run's own step. Returns None if that count needed a real batch, or if there is no copy
        of the unfrozen model.
        """
        if counted.counted_on != META:
            self.note("cost: counted on a real batch, for the forward pass needs values; so no unfrozen baseline is known")
        elif self.fake_model is not None:
            fake_model = self.fake_model
            settings = {key: value for key, value in self.settings.items() if key not in FREEZING_SETTINGS}
            types = (type(fake_model.model), type(self.task))
            return _count_once(types, [settings, _shapes(self.batch)], lambda: fake_model.count(self.task, self.batch))
        return None

    def peak_bytes(self, cost: Cost, counted: StepCount, model: nn.Module) -> int:
        """Return the peak memory on a CPU: the bytes of model, optimizer state and batch, plus the peak of a step.

        `cost`: the costs found so far. `counted`: the count of a step. The result excludes what the optimizer allocates
        within its step and what the freezing method keeps. It is a sum of tensor sizes, because the memory use that the
        operating system reports depends on what the process did before.
        """
        existing = _total_bytes([*model.buffers(), self.batch]) + cost["parameter_bytes"] + cost["optimizer_state_bytes"]
        return existing + counted.peak_bytes


def bytes_held(parameters: Sequence[Tensor], optimizer: Optimizer, selection: Selection) -> Cost:
    """Return {name of a cost: bytes} for parameters, gradients and optimizer state.

    Names that begin with `frozen_` are for the gradients and optimizer state of frozen parameters only. The value of
    `frozen_optimizer_state_bytes` is None if the optimizer needs a closure (LBFGS).
    """
    frozen_state = [state for key, state in optimizer.state.items() if isinstance(key, Tensor) and key in selection]
    return {
        "gradient_bytes": _total_bytes([parameter.grad for parameter in parameters]),
        "optimizer_state_bytes": _total_bytes(optimizer.state),
        "parameter_bytes": _total_bytes(parameters),
        "frozen_gradient_bytes": _total_bytes([parameter.grad for parameter in parameters if parameter in selection]),
        # LBFGS keeps the state of all parameters under one of them.
        "frozen_optimizer_state_bytes": None if needs_closure(optimizer) else _total_bytes(frozen_state),
    }


def shares_of_unfrozen(cost: Cost, baseline: StepCount, optimizer: Optimizer) -> Cost:
    """Return {name of a cost + `_share`: this run's cost divided by the same cost of a step with nothing frozen}.

    `cost`: this run's costs. `baseline`: the count of a step with nothing frozen. The baseline contains no optimizer state;
    its size is estimated from this run, as bytes of state per byte of a parameter with state.
    """
    unfrozen: Cost = {key: getattr(baseline, key, None) for key in COUNTED}
    parameters_with_state = [
        key for key, state in optimizer.state.items() if isinstance(key, Tensor) and _total_bytes(state)
    ]
    bytes_with_state = _total_bytes(parameters_with_state)
    if bytes_with_state and not needs_closure(optimizer):
        unfrozen["optimizer_state_bytes"] = cost["optimizer_state_bytes"] / bytes_with_state * baseline.gradient_bytes
    found = {f"{key}_share": cost[key] / unfrozen[key] for key in COUNTED if cost[key] is not None and unfrozen[key]}
    total = baseline.flops_forward + baseline.flops_backward
    return found | ({"flops_share": (cost["flops_forward"] + cost["flops_backward"]) / total} if total else {})


def explain_small_saving(cost: Cost, counted: StepCount, selection: Selection) -> str:
    """Return a clause that says why freezing saves few FLOPs.

    Returns "" if freezing saves more than 10% of the FLOPs, if the saving is not known, or if nothing is frozen. `cost`:
    this run's costs. `counted`: the count of this run's step.
    """
    frozen = set(selection.parameters)
    if cost.get("flops_share") is None or cost["flops_share"] < SMALL_SAVING or not frozen:
        return ""
    if frozen & set(counted.gradients):
        return "the gradients of what is frozen are computed all the same"
    is_frozen = [name in frozen for name in counted.parameter_order]
    if True not in is_frozen or False not in is_frozen or is_frozen.index(False) > is_frozen.index(True):
        return "the frozen part computes little"
    last_trainable = len(is_frozen) - 1 - is_frozen[::-1].index(False)
    if last_trainable < is_frozen.index(True):
        return "the frozen part is at the end: backward still runs through it"
    return "what trains begins before the frozen part: backward still runs through it"


def _shapes(batch: Any) -> list[Any]:
    """Return a list with one pair for each tensor in a batch: (shape, dtype as a string)."""
    return [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors_in(batch)]


def _total_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested dicts, lists and tuples; memory that several tensors share counts once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages_in(value)}.values())


def _count_once(types: tuple[type, ...], settings: Any, count: Callable[[], StepCount]) -> StepCount:
    """Return `count()`, cached: it is called only once for the same `types` and `settings`."""
    key = (*types, json.dumps(settings, sort_keys=True, default=str))
    if key not in _count_cache:
        _count_cache[key] = count()
    return _count_cache[key]

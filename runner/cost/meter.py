"""What a run costs: figures that do not depend on how busy the machine is, and the seconds of a step; it changes no bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import COSTS, PREDICTED, SECONDS, Cost, Note
from runner.cost.flops import META, Count, FakeCopy, Task, count, storages_in
from runner.freezing.selection import Selection
from runner.tensors import tensors_in
from runner.training.loop import needs_closure

NotRun = Mapping[str, float]
WARM_UP = 3  # steps that are not timed, where there are more
FREEZING = ("method", "freeze", "schedule")  # the settings in which a run and its unfrozen baseline differ
COUNTED = "tensors of forward and backward counted, without the scratch memory of kernels"
SMALL_SAVING = 0.9  # of the baseline's FLOPs: from here on the summary says why
_counts: dict[tuple[Any, ...], Count] = {}  # of this process: a sweep counts once for each model, input and frozen set


@dataclass
class Meter:
    """`cost=off`, which meters nothing; the others add theirs at the same places.

    `settings` are the parts of the config that decide a step's FLOPs. `note` takes why a figure is empty.
    """

    settings: Mapping[str, Any]
    device: torch.device
    note: Note

    def built(self, model: nn.Module) -> None:
        """The model as built, before anything is frozen."""

    def watched(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        """The task to train with; called before the method acts on the optimizer."""
        return task

    def first_of(self, batches: Iterable[Any], step: int, optimizer: Optimizer, undo: ExitStack) -> Iterator[Any]:
        """The batches of a phase that begins at `step`, of which the first is seen before its step is made."""
        for place, batch in enumerate(batches):
            if not place:
                self.begin(batch, step, optimizer, undo)
            yield batch

    def begin(self, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        """A phase's first batch, before its first step."""

    def read(
        self, model: nn.Module, optimizer: Optimizer, selection: Selection, parameters: Sequence[Tensor], not_run: NotRun
    ) -> Cost:
        """The figures, after the last step.

        `model`: as trained; `parameters`: of the model as built; `not_run`: of each module, by name, the share of the steps
        that did not run it.
        """
        return {}

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """A figure that cannot be had is empty and says why; the run goes on."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            self.note(f"cost: {what}: {type(error).__name__}: {reason}")


class Counter(Meter):
    """`cost=count`: bytes of gradients and state read after the last step, then a step counted on a copy of the model.

    After the run, so that nothing that counting leaves behind outside the model, in a cache say, could reach the training.
    """

    blueprint: FakeCopy | None = None  # the model as built
    task: Task
    batch: Any = None  # the first, in the shape of which a step is counted

    def built(self, model: nn.Module) -> None:
        with self.noting("the unfrozen baseline is not known"):
            self.blueprint = FakeCopy.copy_of(model)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def watched(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        self.task = task
        with self.noting("the task cannot be copied, and is counted as it is"):
            self.task = copy.deepcopy(task)  # which may keep a state of its own
        return task

    def begin(self, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        if step == 1:
            self.batch = batch

    def read(
        self, model: nn.Module, optimizer: Optimizer, selection: Selection, parameters: Sequence[Tensor], not_run: NotRun
    ) -> Cost:
        cost: Cost = dict.fromkeys(COSTS)
        with self.noting("bytes of gradients and optimizer state are not known"):
            cost |= bytes_held(parameters, optimizer, selection)
        if self.device.type == "cuda":
            cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
            cost["peak_memory_by"] = "torch.cuda.max_memory_allocated"
        if self.batch is None:
            return cost
        what = [dict(self.settings), sorted(selection.parameters), sorted(selection.modules), _shapes(self.batch)]
        with self.noting("FLOPs and saved bytes are not known"):
            now = _once((type(model), type(self.task)), what, lambda: count(model, self.task, self.batch))
            cost |= {key: getattr(now, key) for key in ("flops_backward", "saved_bytes")}
            left = sum(share * now.by_module.get(name, 0) for name, share in not_run.items())
            cost["flops_forward"] = now.flops_forward - round(left)  # of a step, in the mean
            cost["flops_counted_on"] = now.on
            if cost["peak_memory_bytes"] is None and cost["parameter_bytes"] is not None:
                cost["peak_memory_bytes"], cost["peak_memory_by"] = self.peak(cost, now, model), COUNTED
            if baseline := self.unfrozen(now):
                cost |= shares(cost, baseline, optimizer)
                cost["why_small"] = why_small(cost, now, selection)
        if needs_closure(optimizer):
            self.note("cost: the optimizer's step runs forward and backward itself, several times; the FLOPs are of one")
        return cost

    def unfrozen(self, now: Count) -> Count | None:
        """The count of the model as built, which is what the shares are of."""
        if now.on != META:
            self.note("cost: counted on a real batch, for the forward pass needs values; so no unfrozen baseline is known")
        elif self.blueprint is not None:
            unfrozen = self.blueprint
            settings = {key: value for key, value in self.settings.items() if key not in FREEZING}
            kinds = (type(unfrozen.model), type(self.task))
            return _once(kinds, [settings, _shapes(self.batch)], lambda: unfrozen.count(self.task, self.batch))
        return None

    def peak(self, cost: Cost, now: Count, model: nn.Module) -> int:
        """On a CPU: what stands, and the most that forward and backward add to it.

        Resident size hangs on what the process did before, and torch's profiler, with which the count agrees, takes half a
        second and writes to the terminal. What a step makes for itself and what a method keeps are not in it.
        """
        return (
            _bytes([*model.buffers(), self.batch]) + cost["parameter_bytes"] + cost["optimizer_state_bytes"] + now.peak_bytes
        )


def bytes_held(parameters: Sequence[Tensor], optimizer: Optimizer, selection: Selection) -> Cost:
    """The bytes of gradients, optimizer state and parameters, and of the frozen part's; read from the run itself."""
    frozen = [state for key, state in optimizer.state.items() if isinstance(key, Tensor) and key in selection]
    return {
        "gradient_bytes": _bytes([parameter.grad for parameter in parameters]),
        "optimizer_state_bytes": _bytes(optimizer.state),
        "parameter_bytes": _bytes(parameters),
        "frozen_gradient_bytes": _bytes([parameter.grad for parameter in parameters if parameter in selection]),
        # LBFGS keeps the state of all under one parameter.
        "frozen_optimizer_state_bytes": None if needs_closure(optimizer) else _bytes(frozen),
    }


def shares(cost: Cost, baseline: Count, optimizer: Optimizer) -> Cost:
    """What of the unfrozen baseline each figure is; a byte of a parameter there has as much state as one that is stepped."""
    unfrozen: Cost = {key: getattr(baseline, key, None) for key in PREDICTED}
    with_state = [key for key, state in optimizer.state.items() if isinstance(key, Tensor) and _bytes(state)]
    stepped = _bytes(with_state)
    if stepped and not needs_closure(optimizer):
        unfrozen["optimizer_state_bytes"] = cost["optimizer_state_bytes"] / stepped * baseline.gradient_bytes
    found = {f"{key}_share": cost[key] / unfrozen[key] for key in PREDICTED if cost[key] is not None and unfrozen[key]}
    whole = baseline.flops_forward + baseline.flops_backward
    return found | ({"flops_share": (cost["flops_forward"] + cost["flops_backward"]) / whole} if whole else {})


class Clock(Counter):
    """`cost=time`: also the seconds of forward, backward (clipping included) and step; waits for an accelerator at each."""

    def watched(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        super().watched(task, optimizer, undo)
        self.seconds: list[tuple[float, float, float]] = []
        self.forward: list[float] = []  # begin and end, since the last step

        def timed(model: nn.Module, batch: Any) -> Tensor:
            begin = self.read_clock()
            loss = task(model, batch)
            self.forward += [begin, self.read_clock()]
            return loss

        def before(*_: Any) -> None:
            self.forward.append(self.read_clock())

        undo.callback(optimizer.register_step_pre_hook(before).remove)
        return timed

    def begin(self, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        super().begin(batch, step, optimizer, undo)
        self.forward.clear()

        def after(*_: Any) -> None:
            marks, end = list(self.forward), self.read_clock()
            self.forward.clear()
            if len(marks) == 3:  # begin, end, step: a closure runs its forward passes within the step
                self.seconds.append((marks[1] - marks[0], marks[2] - marks[1], end - marks[2]))

        if step == 1:  # last of all hooks, so that what a method does after the step counts as the step's
            undo.callback(optimizer.register_step_post_hook(after).remove)

    def read(
        self, model: nn.Module, optimizer: Optimizer, selection: Selection, parameters: Sequence[Tensor], not_run: NotRun
    ) -> Cost:
        cost = super().read(model=model, optimizer=optimizer, selection=selection, parameters=parameters, not_run=not_run)
        # Without the warm-up, and without the steps at which the audit looks, which is within them.
        timed = [
            seconds for number, seconds in enumerate(self.seconds[:-1], 1) if number > WARM_UP and number & (number - 1)
        ]
        if not timed:
            few = f"needs {WARM_UP + 3} steps or more"
            why = few if self.seconds else "the optimizer's step runs the forward pass itself"
            self.note(f"cost: the seconds of a step are not known: {why}")
        for place, key in enumerate(SECONDS):
            values = [seconds[place] for seconds in timed]
            quartiles = quantiles(values, n=4, method="inclusive") if len(values) > 1 else []
            cost[key] = median(values) if values else None
            cost[f"{key}_spread"] = quartiles[2] - quartiles[0] if quartiles else None
        return cost

    def read_clock(self) -> float:
        """A monotonic clock, read when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return perf_counter()


def why_small(cost: Cost, now: Count, selection: Selection) -> str:
    """Why freezing saves little of the FLOPs; empty where it does not, and where nothing is frozen."""
    frozen = set(selection.parameters)
    if cost.get("flops_share") is None or cost["flops_share"] < SMALL_SAVING or not frozen:
        return ""
    if frozen & set(now.gradients):
        return "the gradients of what is frozen are computed all the same"
    places = [name in frozen for name in now.order]
    if True not in places or False not in places or places.index(False) > places.index(True):
        return "the frozen part computes little"
    last_trained = len(places) - 1 - places[::-1].index(False)
    if last_trained < places.index(True):
        return "the frozen part is at the end: backward still runs through it"
    return "what trains begins before the frozen part: backward still runs through it"


def _shapes(batch: Any) -> list[Any]:
    return [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors_in(batch)]


def _bytes(value: Any) -> int:
    """The bytes of all tensors in nested dicts, lists and tuples, each storage once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages_in(value)}.values())


def _once(kinds: tuple[type, ...], what: Any, counting: Callable[[], Count]) -> Count:
    key = (*kinds, json.dumps(what, sort_keys=True, default=str))
    if key not in _counts:
        _counts[key] = counting()
    return _counts[key]

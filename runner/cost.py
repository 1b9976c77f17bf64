"""What a run costs: figures that do not hang on the machine's mood, and the seconds of a step. Changes no bit of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.config import Config
from runner.flops import META, Count, Task, Weightless, count, storages_in, tensors_in
from runner.rows import COSTS, PREDICTED, SECONDS
from runner.selection import Selection

Cost = dict[str, Any]
LeftOut = Iterable[tuple[str, float]]
WARM_UP = 3  # steps that are not timed, where there are more
FREEZING = ("method", "freeze", "schedule")  # the settings in which a run and its unfrozen baseline differ
SMALL_SAVING = 0.9  # of the baseline's FLOPs: from here on the summary says why
_counted: dict[
    tuple[Any, ...], Count
] = {}  # in this process, so that a sweep counts once for each model, input and frozen set


@dataclass
class Meter:
    """`cost=off`, which meters nothing; the others add theirs at the same places.

    `settings` are the parts of the config that decide a step's FLOPs. `notes` say why a figure is empty.
    """

    settings: Mapping[str, Any]
    device: torch.device
    notes: list[str] = field(default_factory=list)

    def built(self, model: nn.Module) -> None:
        """The model as built, before anything is frozen."""

    def watched(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        """The task to train with; called before the method acts on the optimizer."""
        return task

    def first_of(
        self, batches: Iterable[Any], model: nn.Module, step: int, optimizer: Optimizer, undo: ExitStack
    ) -> Iterator[Any]:
        """The batches of a phase, of which the first is seen, in training mode, before its step is made."""
        for place, batch in enumerate(batches):
            if not place:
                self.begin(model, batch, step, optimizer, undo)
            yield batch

    def begin(self, model: nn.Module, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        """A phase's model and its first batch, before its first step."""

    def read(self, parameters: Iterable[Tensor], optimizer: Optimizer, selection: Selection, left_out: LeftOut = ()) -> Cost:
        """The figures, after the last step; `left_out`: modules that some steps did not run, and the share of these."""
        return {}

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """A figure that cannot be had is empty and says why; the run goes on."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            self.notes.append(f"cost: {what}: {type(error).__name__}: {reason}")


class Counter(Meter):
    """`cost=count`: FLOPs and saved bytes counted on a copy; bytes of gradients and state read after the last step."""

    blueprint: Weightless | None = None  # the model as built
    task: Task
    batch: Any = None
    now: Count | None = None
    buffer_bytes = 0
    standing = 0  # bytes of buffers and of a batch

    def built(self, model: nn.Module) -> None:
        self.buffer_bytes = _bytes((buffer, [buffer]) for buffer in model.buffers())
        with self.noting("the unfrozen baseline is not known"):
            self.blueprint = Weightless.copy_of(model)

    def watched(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        self.task = task
        return task

    def begin(self, model: nn.Module, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        self.standing = self.buffer_bytes + _bytes((tensor, [tensor]) for tensor in tensors_in(batch))
        if step == 1 and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        shapes = _shapes(batch)
        self.now, self.batch = None, batch
        with self.noting("FLOPs and saved bytes are not known"):
            what = [dict(self.settings), step, shapes]
            self.now = _once((type(model), type(self.task)), what, lambda: count(model, self.task, batch))

    def unfrozen(self) -> Count | None:
        """The count of the model as built, which is what the shares are of."""
        if self.now and self.now.on == META and self.blueprint is not None:
            unfrozen, shapes = self.blueprint, _shapes(self.batch)
            settings = {key: value for key, value in self.settings.items() if key not in FREEZING}
            with self.noting("the unfrozen baseline is not known"):
                kinds = (type(unfrozen.model), type(self.task))
                return _once(kinds, [settings, shapes], lambda: unfrozen.count(self.task, self.batch))
        return None

    def read(self, parameters: Iterable[Tensor], optimizer: Optimizer, selection: Selection, left_out: LeftOut = ()) -> Cost:
        parameters = list(parameters)
        gradients = [(parameter, list(tensors_in(parameter.grad))) for parameter in parameters]
        states = [(parameter, list(tensors_in(state))) for parameter, state in optimizer.state.items()]
        counted: Cost = {key: getattr(self.now, key, None) for key in ("flops_forward", "flops_backward", "saved_bytes")}
        if self.now:  # of a step, in the mean
            counted["flops_forward"] -= round(sum(share * self.now.by_module.get(name, 0) for name, share in left_out))
        cost: Cost = {
            **dict.fromkeys(COSTS),
            **counted,
            "gradient_bytes": _bytes(gradients),
            "optimizer_state_bytes": _bytes(states),
            "parameter_bytes": _bytes([(parameter, [parameter]) for parameter in parameters]),
            "frozen_gradient_bytes": _bytes((p, held) for p, held in gradients if p in selection),
            "frozen_optimizer_state_bytes": _bytes((p, held) for p, held in states if p in selection),
            "flops_counted_on": self.now.on if self.now else None,
        }
        cost["peak_memory_bytes"], cost["peak_memory_by"] = self.peak(cost, self.now)
        if baseline := self.unfrozen():
            with_state = _bytes((p, [p]) for p, held in states if held)
            unfrozen = {key: getattr(baseline, key, None) for key in PREDICTED}
            if with_state:  # as much for each byte of a parameter as those have that are stepped
                unfrozen["optimizer_state_bytes"] = cost["optimizer_state_bytes"] / with_state * baseline.gradient_bytes
            cost |= {
                f"{key}_share": cost[key] / unfrozen[key] for key in PREDICTED if cost[key] is not None and unfrozen[key]
            }
            cost["why_small"] = why_small(cost, self.now, selection)
        return cost

    def peak(self, cost: Cost, now: Count | None) -> tuple[int | None, str | None]:
        """The most bytes at once, and who says so: the device's own counter, or on a CPU what stands and what was counted.

        Resident size hangs on what the process did before, and the profiler, with which the count agrees, on its half
        second and its lines on the terminal.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device), "torch.cuda.max_memory_allocated"
        if now is None:
            return None, None
        standing = self.standing + cost["parameter_bytes"] + cost["optimizer_state_bytes"]
        return standing + now.peak_bytes, "tensors counted, without the scratch memory of kernels"


class Clock(Counter):
    """`cost=time`: also the seconds of forward, backward (clipping included) and step; waits for an accelerator at each."""

    def watched(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        super().watched(task, optimizer, undo)
        self.seconds: list[tuple[float, float, float]] = []
        self.forward: list[float] = []  # begin and end, since the last step
        self.stepped = False

        def timed(model: nn.Module, batch: Any) -> Tensor:
            begin = self.read_clock()
            loss = task(model, batch)
            self.forward += [begin, self.read_clock()]
            return loss

        def before(*_: Any) -> None:
            self.forward.append(self.read_clock())

        undo.callback(optimizer.register_step_pre_hook(before).remove)
        return timed

    def begin(self, model: nn.Module, batch: Any, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        super().begin(model, batch, step, optimizer, undo)
        self.forward.clear()

        def after(*_: Any) -> None:
            marks, end = list(self.forward), self.read_clock()
            self.forward.clear()
            if len(marks) == 3:  # begin, end, step: a closure runs its forward passes within the step
                self.seconds.append((marks[1] - marks[0], marks[2] - marks[1], end - marks[2]))

        if step == 1:  # last of all hooks, so that what a method does after the step counts as the step's
            undo.callback(optimizer.register_step_post_hook(after).remove)

    def read(self, parameters: Iterable[Tensor], optimizer: Optimizer, selection: Selection, left_out: LeftOut = ()) -> Cost:
        cost = super().read(parameters, optimizer, selection, left_out)
        timed = self.seconds[WARM_UP:]
        if not timed:
            why = (
                "the optimizer's step runs the forward pass itself"
                if not self.seconds
                else f"needs more than {WARM_UP} steps"
            )
            self.notes.append(f"cost: the seconds of a step are not known: {why}")
        for place, key in enumerate(SECONDS):
            values = [seconds[place] for seconds in timed]
            quartiles = quantiles(values, n=4) if len(values) > 1 else []
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


def build_meter(config: Config, device: torch.device) -> Meter:
    """The meter of `cost=off|count|time`."""
    kind = {"off": Meter, "count": Counter, "time": Clock}[config.cost.value]
    settings = ("task", "autocast", "method", "freeze", "schedule")
    return kind({"model": config.model.build} | {key: getattr(config, key) for key in settings}, device)


def why_small(cost: Cost, now: Count | None, selection: Selection) -> str:
    """Why freezing saves little of the FLOPs; empty where it does not, and where nothing is frozen."""
    forward, backward = cost.get("flops_forward_share"), cost.get("flops_backward_share")
    if now is None or forward is None or backward is None or not selection.parameters:
        return ""
    if (1 + 2 * backward) / 3 < SMALL_SAVING:  # backward takes about twice what forward does
        return ""
    if cost["frozen_gradient_bytes"]:
        return "the gradients of what is frozen are computed all the same"
    frozen = {name for name in now.order if name in selection.parameters}
    first = next((name for name in now.order if name not in frozen), None)
    if first is not None and first == now.order[0]:
        return "the frozen part is at the end: backward still runs through it"
    return "the frozen part computes little"


def _shapes(batch: Any) -> list[Any]:
    return [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors_in(batch)]


def _bytes(held: Iterable[tuple[Tensor, list[Tensor]]]) -> int:
    """The bytes of all tensors held, each storage once."""
    storages = {storage.data_ptr(): storage.nbytes() for _, tensors in held for storage in storages_in(tensors)}
    return sum(storages.values())


def _once(kinds: tuple[type, ...], what: Any, counting: Callable[[], Count]) -> Count:
    key = (*kinds, json.dumps(what, sort_keys=True, default=str))
    if key not in _counted:
        _counted[key] = counting()
    return _counted[key]

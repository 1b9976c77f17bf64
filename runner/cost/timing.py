"""Measure the seconds of each part of a training step: forward, backward and the optimizer step."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import SECONDS, Cost
from runner.cost.meter import CountingMeter
from runner.cost.phases import Entries
from runner.training.loop import Task

WARM_UP_STEPS = 3  # not timed, if the run has more steps


class TimingMeter(CountingMeter):
    """The meter for `cost=time`: counts as `cost=count` does, and measures the seconds of each part of a step.

    The parts are forward, backward (with clipping, and with moving batches to the device where a step takes several) and the
    optimizer's step. Each time the clock is read, the meter first waits until the GPU has finished its work.
    """

    def wrap_task(self, task: Task, optimizer: Optimizer, undo: ExitStack) -> Task:
        """Return a function (model, batch) -> loss that calls `task` and records when the forward pass begins and ends."""
        super().wrap_task(task, optimizer, undo)
        self.seconds: list[tuple[float, float, float]] = []  # of forward, backward and optimizer step
        self.forwards: list[tuple[float, float]] = []  # begin and end of each forward pass since the last step
        self.before_step, self.step_begun = 0, 0.0  # how many of them there were when the optimizer's step began, and when

        def timed_task(model: nn.Module, batch: Any) -> Tensor:
            begin = self.read_clock()
            loss = task(model, batch)
            self.forwards.append((begin, self.read_clock()))
            return loss

        def before_step(*_: Any) -> None:
            self.before_step, self.step_begun = len(self.forwards), self.read_clock()

        undo.callback(optimizer.register_step_pre_hook(before_step).remove)
        return timed_task

    def on_phase_begin(self, step: int, optimizer: Optimizer, undo: ExitStack) -> None:
        """Forget the clock readings of an unfinished step. At step 1, also register an optimizer hook.

        The hook stores the seconds of forward, backward and optimizer step after each step. A callback on `undo` removes the
        hook.
        """
        self.forwards.clear()

        def after_step(*_: Any) -> None:
            end = self.read_clock()
            if self.forwards and len(self.forwards) == self.before_step:  # no closure runs them within the step
                forward = sum(ended - begun for begun, ended in self.forwards)
                self.seconds.append((forward, self.step_begun - self.forwards[0][0] - forward, end - self.step_begun))
            self.forwards.clear()

        if step == 1:  # registered last, so that what a method does in a hook after the step counts as part of the step
            undo.callback(optimizer.register_step_post_hook(after_step).remove)

    def read_costs(self, model: nn.Module, optimizer: Optimizer, entries: Entries) -> Cost:
        """Return the costs of `cost=count`, and the seconds of forward, backward and optimizer step.

        For each of the three, two values are given: the median over the timed steps, and the interquartile range under a
        name that ends in `_spread`. The median is None if no step was timed,
        the range if fewer than two were.
        """
        cost = super().read_costs(model, optimizer, entries)
        # Without the warm-up, and without steps 1, 2, 4, 8, ..., which include the audit's comparison.
        timed = [
            seconds
            for number, seconds in enumerate(self.seconds[:-1], 1)
            if number > WARM_UP_STEPS and number & (number - 1)
        ]
        if not timed:
            too_few = f"needs {WARM_UP_STEPS + 3} steps or more"
            reason = too_few if self.seconds else "the optimizer's step runs the forward pass itself"
            self.note(f"cost: the seconds of a step are not known: {reason}")
        for position, key in enumerate(SECONDS):
            values = [seconds[position] for seconds in timed]
            quartiles = quantiles(values, n=4, method="inclusive") if len(values) > 1 else []
            cost[key] = median(values) if values else None
            cost[f"{key}_spread"] = quartiles[2] - quartiles[0] if quartiles else None
        return cost

    def read_clock(self) -> float:
        """Return the seconds of a monotonic clock, after waiting until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return perf_counter()

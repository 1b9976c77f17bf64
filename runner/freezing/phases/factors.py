"""Multiply the scheduled learning rates of parameter groups during a step, so that every scheduler goes on undisturbed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.optim import Optimizer

from runner.freezing.phases.phase import Factor, Phase


class RateFactors:
    """Multiplies the learning rates of an optimizer's groups by the factors of the present phase, in each of its steps.

    The factor is applied in a step pre-hook and taken off in a post-hook. Written into the group for good, it would be
    compounded by each scheduler that computes the next rate from the present one (StepLR, cosine, ExponentialLR).

    Attributes:
        step: the number of steps that the optimizer has begun.
        last: {group name: learning rate} of the last step, of those groups whose rate was multiplied in it.
    """

    def __init__(self, optimizer: Optimizer, block_of: Mapping[int, str], undo: ExitStack) -> None:
        """Register the hooks, if there are blocks. Closing `undo` removes them.

        `block_of`: {id of a parameter: name of its block}.
        """
        self.optimizer, self.block_of = optimizer, block_of
        self.factors: Mapping[str, Factor] = {}
        self.step, self.last = 0, dict[str, float]()
        self.applied: list[tuple[dict[str, Any], Any, Any]] = []  # (group, its scheduled rate, the product)
        if block_of:
            undo.callback(optimizer.register_step_pre_hook(self._apply).remove)
            undo.callback(optimizer.register_step_post_hook(self._take_off).remove)

    def begin(self, phase: Phase) -> None:
        """Use the factors of this phase from the next step on."""
        self.factors, self.step = phase.factors, phase.first - 1

    def multiplied(self, lrs: Mapping[str, float]) -> dict[str, float]:
        """Return the learning rates of the last step, those of some groups multiplied; `lrs`: those that are scheduled."""
        return {**lrs, **self.last}

    def at(self, step: int, lrs: Mapping[str, float]) -> dict[str, float]:
        """Return the learning rates of a step that is not made, in the present phase; `lrs`: those that are scheduled."""
        factors = {group["name"]: self._factor_of(group, step) for group in self.optimizer.param_groups if self.factors}
        return {name: lr * factors.get(name, 1.0) for name, lr in lrs.items()}

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Leave the scheduled rates as they are in the steps of this block."""
        factors, self.factors = self.factors, {}
        try:
            yield
        finally:
            self.factors = factors

    def _apply(self, *_: Any) -> None:
        """Step pre-hook: multiply the rates."""
        self._restore()  # if the last step raised
        self.step += 1
        for group in self.optimizer.param_groups if self.factors else ():
            factor = self._factor_of(group, self.step)
            if factor != 1 and group.get("lr") is not None:
                scheduled = group["lr"]
                group["lr"] = scheduled * factor
                self.applied.append((group, scheduled, group["lr"]))

    def _take_off(self, *_: Any) -> None:
        """Step post-hook: note the rates of the step, and set the scheduled ones again."""
        self.last = {group["name"]: float(group["lr"]) for group, _, _ in self.applied}
        self._restore()

    def _restore(self) -> None:
        """Set the scheduled rates again, except where another hook has set a rate in the step."""
        for group, scheduled, product in self.applied:
            if group["lr"] is product:
                group["lr"] = scheduled
        self.applied.clear()

    def _factor_of(self, group: Mapping[str, Any], step: int) -> float:
        """Return the factor of the block whose parameters a group has, at a step of the present phase."""
        block = self.block_of.get(id(group["params"][0])) if group["params"] else None
        return factor_at(self.factors.get(block, 1.0), step) if block is not None else 1.0


def factor_at(factor: Factor, step: int) -> float:
    """Return a factor at a step."""
    return factor(step) if callable(factor) else factor

"""Freezing by a learning rate of 0."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch.optim import Optimizer

from runner.freezing.groups import Group, split_by_frozen
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class ZeroLr(FreezingMethod):
    """Puts frozen parameters into parameter groups of their own, with a learning rate of 0.

    Backward still computes the gradients of frozen parameters, so it does not get cheaper. If gradients are clipped by their
    total norm, these gradients count in the norm. Frozen parameters can still change under optimizers that ignore the
    learning rate (Rprop). They can also change under schedulers that raise the learning rate above 0: OneCycleLR, CyclicLR,
    SWALR, and cosine with `eta_min`. If the freezing begins in mid-run, schedulers that compute the learning rate from the
    initial one (LambdaLR) raise it too. With `guard`, learning rate and weight decay are set to 0 again before each step, so
    schedulers do no harm. The forward pass can still write to frozen layers, as BatchNorm does to its statistics.
    Source: https://docs.pytorch.org/docs/stable/optim.html#per-parameter-options
    """

    leaks_under = frozenset({"scheduler", "scheduler_mid_run", "optimizer_ignores_lr"})

    def __init__(self, guard: bool = False) -> None:
        self.guard = guard
        if guard:
            self.leaks_under = self.leaks_under - {"scheduler", "scheduler_mid_run"}

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        return split_by_frozen(groups, selection, lr=0.0)

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        if not self.guard:
            return

        def set_to_zero(*_: Any) -> None:
            for group in optimizer.param_groups:
                if any(parameter in selection for parameter in group["params"]):
                    group.update({key: 0.0 for key in ("lr", "weight_decay") if key in group})

        undo.callback(optimizer.register_step_pre_hook(set_to_zero).remove)

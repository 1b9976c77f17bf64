"""Freezing by a learning rate of 0."""

from __future__ import annotations

from runner.groups import Group, by_frozen
from runner.methods.base import FreezingMethod
from runner.selection import Selection


class ZeroLr(FreezingMethod):
    """Gives frozen parameters a group of their own with a learning rate of 0, as users who write `lr=0` do.

    Gradients are still computed, so nothing is saved, and they enter a global-norm clip. Does not hold against
    schedulers that set the rate (OneCycleLR, CyclicLR, SWALR, cosine with `eta_min`), optimizers that move at rate 0
    (Rprop), or writes in the forward pass.
    Source: https://docs.pytorch.org/docs/stable/optim.html#per-parameter-options
    """

    leaks_under = frozenset({"scheduler", "optimizer_ignores_lr"})

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        return by_frozen(groups, selection, lr=0.0)

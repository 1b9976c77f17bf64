"""Freezing by leaving out."""

from __future__ import annotations

from runner.freezing.groups import Group
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class Exclude(FreezingMethod):
    """Does not hand frozen parameters to the optimizer, which therefore cannot step them.

    Gradients are still computed and pile up, since `optimizer.zero_grad()` passes them over, and they enter a global-norm
    clip over all parameters: the rest is then trained differently. Does not stop writes in the forward pass.
    Source: https://docs.pytorch.org/docs/stable/optim.html#constructing-it
    """

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        return [{**group, "params": [p for p in group["params"] if p not in selection]} for group in groups]

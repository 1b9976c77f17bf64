"""Freezing by not giving parameters to the optimizer."""

from __future__ import annotations

from runner.freezing.groups import Group
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class Exclude(FreezingMethod):
    """Does not give frozen parameters to the optimizer, which therefore cannot step them.

    Gradients are still computed. They accumulate, because `optimizer.zero_grad()` does not reach them, and count in a
    global-norm clip over all parameters, which changes how the other parameters train. Does not prevent writes in the
    forward pass.
    Source: https://docs.pytorch.org/docs/stable/optim.html#constructing-it
    """

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        return [{**group, "params": [p for p in group["params"] if p not in selection]} for group in groups]

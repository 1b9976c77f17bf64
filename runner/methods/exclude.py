"""Freezing by not giving parameters to the optimizer."""

from __future__ import annotations

from runner.freezing.groups import Group
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class Exclude(FreezingMethod):
    """Does not give frozen parameters to the optimizer, which therefore cannot step them.

    Backward still computes the gradients of frozen parameters. These gradients add up from step to step, because
    `optimizer.zero_grad()` does not reach them. If gradients are clipped by their total norm, the gradients of frozen
    parameters count in the norm and so change how the other parameters train. The forward pass can still write to frozen
    layers, as BatchNorm does to its statistics.
    Source: https://docs.pytorch.org/docs/stable/optim.html#constructing-it
    """

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        return [{**group, "params": [p for p in group["params"] if p not in selection]} for group in groups]

"""What a freezing method may do, and the baseline that does nothing."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn
from torch.optim import Optimizer

from runner.groups import Group
from runner.selection import Selection


class FreezingMethod:
    """Freezes nothing: the baseline, and the three stages at which a method may act.

    A method overrides the stage where it acts and nothing else, uses torch's own means (flags, groups, hooks, module
    swaps), and puts a callback on `undo` for whatever it changes in the model, so that leaving the stack restores it.
    """

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        """The reason why this method cannot serve this model, or None."""
        return None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        """Act on the model before the optimizer exists; returns the model to train."""
        return model

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        """Rewrite the optimizer's parameter groups, as cut by the config."""
        return groups

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        """Act on the optimizer once it exists."""

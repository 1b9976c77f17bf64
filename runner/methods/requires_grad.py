"""Freezing by setting `requires_grad` to False."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn
from torch.optim import Optimizer

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod
from runner.tensors.optimizer_state import drop_state


class RequiresGrad(FreezingMethod):
    """Sets `requires_grad` to False: backward computes no gradient for the parameter, so the optimizer does not step it.

    If the flag is set before the first step, the parameter keeps all its bits under any dense torch optimizer. Frozen
    parameters can still change if the freezing begins in mid-run and either gradients are set to zeros instead of None
    (weight decay and momentum then act on the zeros), or the optimizer is LBFGS. With `clean`, gradients and optimizer state
    of frozen parameters are deleted when the freezing begins, which prevents both; of LBFGS, the whole state is. The forward
    pass can still write to frozen layers: BatchNorm's statistics, `Embedding(max_norm=...)`, spectral norm.
    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#setting-requires-grad
    """

    leaks_under = frozenset({"zeros_mid_run", "lbfgs_mid_run"})

    def __init__(self, clean: bool = False) -> None:
        self.clean = clean
        if clean:
            self.leaks_under = frozenset()

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        return model

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        if self.clean:
            drop_state(optimizer, selection.parameters.values())

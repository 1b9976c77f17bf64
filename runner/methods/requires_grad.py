"""Freezing by setting `requires_grad` to False."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn
from torch.optim import Optimizer

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class RequiresGrad(FreezingMethod):
    """Sets `requires_grad` to False: backward computes no gradient, and the optimizer does not step the parameter.

    No bit changes under any dense torch optimizer if it is set before the first step. If it is set in mid-run, parameters
    still change where gradients are kept as zeros (by weight decay and stored moments), and under LBFGS. `clean` deletes
    gradients and optimizer state at that moment, so that zero gradients do no harm. Does not prevent writes in the forward
    pass: BatchNorm's statistics, `Embedding(max_norm=...)`, spectral norm.
    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#setting-requires-grad
    """

    leaks_under = frozenset({"zeros_mid_run", "lbfgs_mid_run"})

    def __init__(self, clean: bool = False) -> None:
        self.clean = clean
        if clean:
            self.leaks_under = self.leaks_under - {"zeros_mid_run"}

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        return model

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        for parameter in selection.parameters.values() if self.clean else ():
            parameter.grad = None
            optimizer.state.pop(parameter, None)

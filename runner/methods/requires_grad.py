"""Freezing by the flag."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn

from runner.methods.base import FreezingMethod
from runner.selection import Selection


class RequiresGrad(FreezingMethod):
    """Sets `requires_grad` False, so that backward computes no gradient and the optimizer passes the parameter over.

    Holds exactly under every dense torch optimizer when set before the first step with gradients as None. Does not
    stop what is written in the forward pass: BatchNorm's statistics, `Embedding(max_norm=...)`, spectral norm.
    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#setting-requires-grad
    """

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        return model

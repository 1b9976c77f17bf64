"""Freezing by zeroed gradients: the trap that people write."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class ZeroGrad(FreezingMethod):
    """Replaces a frozen parameter's gradient by zeros, in a hook.

    A zero gradient is not None, so the optimizer steps the parameter all the same. It stays only where a step on a zero
    gradient is no step: not with weight decay (any optimizer), not where momentum or moments were gathered before, not
    under ASGD. Does not stop writes in the forward pass.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.register_hook.html
    """

    leaks_under = frozenset({"weight_decay", "optimizer_rule", "mid_run", "zeros_mid_run", "lbfgs_mid_run"})

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            if parameter.requires_grad:
                undo.callback(parameter.register_hook(torch.zeros_like).remove)
        return model

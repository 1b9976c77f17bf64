"""Freezing by setting gradients to zero: a common mistake."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class ZeroGrad(FreezingMethod):
    """Replaces a frozen parameter's gradient by zeros, in a hook.

    A zero gradient is not None, so the optimizer still steps the parameter. No bit changes only if a step with a zero
    gradient changes nothing: not with weight decay (any optimizer), not with momentum or moments from earlier steps, not
    under ASGD. Does not prevent writes in the forward pass.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.register_hook.html
    """

    leaks_under = frozenset({"weight_decay", "optimizer_rule", "mid_run", "zeros_mid_run", "lbfgs_mid_run"})

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            if parameter.requires_grad:
                undo.callback(parameter.register_hook(torch.zeros_like).remove)
        return model

"""Freezing by setting gradients to zero: a common mistake."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class ZeroGrad(FreezingMethod):
    """Replaces the gradient of a frozen parameter by zeros, with a hook.

    A zero gradient is not None, so the optimizer still steps the parameter. Frozen parameters can therefore change in these
    cases: with weight decay; with momentum or other optimizer state from steps before the freezing; under ASGD; and under
    LBFGS if the freezing begins in mid-run. The forward pass can still write to frozen layers, as BatchNorm does to its
    statistics.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.register_hook.html
    """

    leaks_under = frozenset({"weight_decay", "optimizer_rule", "mid_run", "zeros_mid_run", "lbfgs_mid_run"})

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            if parameter.requires_grad:
                undo.callback(parameter.register_hook(torch.zeros_like).remove)
        return model

"""Freezing by setting gradients to None."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class GradNone(FreezingMethod):
    """Sets the gradient of a frozen parameter to None during backward, before gradients are clipped and the optimizer steps.

    The optimizer ignores a parameter without a gradient, also its weight decay and momentum. Backward does not get cheaper.
    Frozen parameters can still change if the freezing begins in mid-run under LBFGS, or if the loss does not depend on them
    and gradients are set to zeros instead of None: the hook is not called then. The forward pass can still write to frozen
    layers, as BatchNorm does to its statistics.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.register_post_accumulate_grad_hook.html
    """

    leaks_under = frozenset({"lbfgs_mid_run"})

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            if parameter.requires_grad:
                undo.callback(parameter.register_post_accumulate_grad_hook(drop_gradient).remove)
        return model


def drop_gradient(parameter: Tensor) -> None:
    """Set the gradient to None; a hook that backward calls when the gradient of the parameter is complete."""
    parameter.grad = None

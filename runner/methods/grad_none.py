"""Freezing by setting gradients to None."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class GradNone(FreezingMethod):
    """Sets the gradient of a frozen parameter to None with a hook in backward, before clipping and the optimizer step.

    The optimizer skips a parameter without a gradient: weight decay and momentum do not act on it either. Backward does not
    get cheaper. Frozen parameters can still change in two cases in which the freezing begins in mid-run. One is the
    optimizer LBFGS. In the other, gradients are set to zeros instead of None and the loss does not depend on the parameter,
    so that the hook is not called. The forward pass can still write to frozen layers, as BatchNorm does to its statistics.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.register_post_accumulate_grad_hook.html
    """

    leaks_under = frozenset({"lbfgs_mid_run"})

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            if parameter.requires_grad:
                undo.callback(parameter.register_post_accumulate_grad_hook(drop_gradient).remove)
        return model


def drop_gradient(parameter: Tensor) -> None:
    """Set `parameter.grad` to None; a hook that backward calls when the parameter's gradient is complete."""
    parameter.grad = None

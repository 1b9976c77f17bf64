"""Freezing by setting gradients to None."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class GradNone(FreezingMethod):
    """Sets a frozen parameter's gradient to None as soon as backward has accumulated it, before clipping and the step.

    The optimizer ignores a parameter without a gradient: no weight decay, no momentum. The work of backward is not saved.
    A frozen parameter still changes if the loss does not depend on it while gradients are kept as zeros, and under LBFGS
    if freezing begins in mid-run. Does not prevent writes in the forward pass.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.register_post_accumulate_grad_hook.html
    """

    leaks_under = frozenset({"lbfgs_mid_run"})

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        for parameter in selection.parameters.values():
            if parameter.requires_grad:
                undo.callback(parameter.register_post_accumulate_grad_hook(_drop_gradient).remove)
        return model


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None

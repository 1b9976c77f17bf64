"""Freezing by copying the old values back after each step."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.optim import Optimizer

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class Restore(FreezingMethod):
    """After each optimizer step, restores frozen parameters from a copy that was made when the method was attached.

    The parameters change within a step and return (verdict `returned`). This costs a second copy of them, and optimizer
    state is still updated. A write between two steps remains until the next step; one after the last step remains.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.register_step_post_hook.html
    """

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        copies = [(parameter, parameter.detach().clone()) for parameter in selection.parameters.values()]

        @torch.no_grad()
        def restore_copies(*_: Any) -> None:
            for parameter, copy in copies:
                parameter.copy_(copy)

        undo.callback(optimizer.register_step_post_hook(restore_copies).remove)

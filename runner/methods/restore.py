"""Freezing by copying the old values back after each step."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.optim import Optimizer

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class Restore(FreezingMethod):
    """Copies the frozen parameters when the freezing begins, and writes the copies back after each optimizer step.

    The parameters change within a step and then get their old bits back; the report gives them the verdict `returned`. The
    method needs memory for the copies, and the optimizer still updates its state for these parameters. If anything else
    writes to the parameters between two steps, the change stays until the end of the next step. A change after the last step
    stays for good.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.register_step_post_hook.html
    """

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        copies = [(parameter, parameter.detach().clone()) for parameter in selection.parameters.values()]

        @torch.no_grad()
        def restore_copies(*_: Any) -> None:
            for parameter, copy in copies:
                parameter.copy_(copy)

        undo.callback(optimizer.register_step_post_hook(restore_copies).remove)

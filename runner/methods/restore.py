"""Freezing by copying back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.optim import Optimizer

from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod


class Restore(FreezingMethod):
    """Copies frozen parameters back after each step of the optimizer, from a copy taken when it is attached.

    They move within a step and return (the verdict says so), at the price of a second copy, and optimizer state keeps
    gathering. What is written between two steps stays until the next one, and what is written after the last stays.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.register_step_post_hook.html
    """

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        copies = [(parameter, parameter.detach().clone()) for parameter in selection.parameters.values()]

        @torch.no_grad()
        def put_back(*_: Any) -> None:
            for parameter, copy in copies:
                parameter.copy_(copy)

        undo.callback(optimizer.register_step_post_hook(put_back).remove)

"""Freezing by running the frozen prefix without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod
from runner.methods.prefix.boundary import frozen_prefix


class Detach(FreezingMethod):
    """Runs the frozen prefix without a graph, as `with torch.no_grad()` around a backbone does.

    Nothing of the prefix is saved for backward and none of its parameters gets a gradient, so that the optimizer passes
    them over. Serves a frozen prefix alone: a frozen part in the middle or at the end is skipped. Begun in mid-run, it does
    not hold where gradients are kept as zeros, nor under LBFGS. Does not stop writes in the forward pass. `input`: shape
    of one sample.
    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#locally-disabling-gradient-computation
    """

    leaks_under = frozenset({"zeros_mid_run", "lbfgs_mid_run"})

    def __init__(self, input: Sequence[int]) -> None:
        self.input = input
        self.boundary: str | None = None
        self.found_for: Selection | None = None
        self.hooks: list[RemovableHandle] = []

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        if not selection.parameters:
            return None
        self.boundary, reason = frozen_prefix(model, selection, self.input)
        self.found_for = selection
        return reason or None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        if selection is not self.found_for and (reason := self.skip(model, selection)):
            raise SkippedError(reason)
        for hook in self.hooks:  # of an earlier phase, whose prefix was shorter
            hook.remove()
        if self.boundary is not None and selection.parameters:
            was: list[bool] = []

            def begin(*_: Any) -> None:
                was.append(torch.is_grad_enabled())
                torch.set_grad_enabled(False)

            def end(*_: Any) -> None:
                if was:
                    torch.set_grad_enabled(was.pop())

            self.hooks = [
                model.register_forward_pre_hook(begin),
                model.get_submodule(self.boundary).register_forward_hook(end, prepend=True),
                model.register_forward_hook(end, prepend=True, always_call=True),  # the forward pass may raise
            ]
            for hook in self.hooks:
                undo.callback(hook.remove)
        return model

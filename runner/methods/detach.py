"""Freezing by running the frozen first layers without an autograd graph."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod
from runner.methods.prefix.boundary import frozen_prefixes


class Detach(FreezingMethod):
    """Runs the frozen first layers without an autograd graph, as `with torch.no_grad()` around a backbone does.

    The frozen layers save nothing for backward and get no gradients, so the optimizer does not step them. All frozen layers
    must run before the first trainable one, which is tried by a step on the first batch; otherwise the run is skipped.
    Frozen parameters can still change if the freezing begins in mid-run and either gradients are set to zeros instead of
    None, or the optimizer is LBFGS. The forward pass can still write to frozen layers, as BatchNorm does to its statistics.
    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#locally-disabling-gradient-computation
    """

    leaks_under = frozenset({"zeros_mid_run", "lbfgs_mid_run"})

    def __init__(self) -> None:
        self.boundary: str | None = None  # the module at the end of the frozen prefix
        self.checked_selection: Selection | None = None  # the selection that `boundary` is for

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        if not selection.parameters:
            return None
        self.checked_selection = selection
        try:
            self.boundary = next(frozen_prefixes(model, selection, self.example))
        except SkippedError as error:
            return str(error)
        return None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        if selection is not self.checked_selection and (reason := self.skip(model, selection)):
            raise SkippedError(reason)
        if self.boundary is not None and selection.parameters:
            modes_before: list[bool] = []

            def disable_grad(*_: Any) -> None:
                modes_before.append(torch.is_grad_enabled())
                torch.set_grad_enabled(False)

            def restore_grad_mode(*_: Any) -> None:
                if modes_before:
                    torch.set_grad_enabled(modes_before.pop())

            hooks = [
                model.register_forward_pre_hook(disable_grad),
                model.get_submodule(self.boundary).register_forward_hook(restore_grad_mode, prepend=True),
                # if the forward pass raises before the boundary
                model.register_forward_hook(restore_grad_mode, prepend=True, always_call=True),
            ]
            for hook in hooks:
                undo.callback(hook.remove)
        return model

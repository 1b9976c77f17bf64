"""Notice every forward pass of the process: when it begins and when it has ended, the module's own hooks included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from runner.proof.steps import is_capturing


class ForwardHooks:
    """Calls `on_begin` before and `on_end` after each forward pass of a module.

    The hooks are set on all modules, because hooks on one module would disable the fast path of a transformer in eval mode.
    torch calls them before the module's own forward hooks. A module that has such hooks, and therefore no fast path, gets
    another hook for the time of its forward pass, so that what its own hooks write counts as written by the forward pass.

    Args:
        on_begin: called with the module; returns whether `on_end` is to be called too.
        on_end: called with the module.
    """

    def __init__(self, on_begin: Callable[[nn.Module], bool], on_end: Callable[[nn.Module], None]) -> None:
        self.on_begin, self.on_end = on_begin, on_end
        self.is_paused = False
        self.last_hooks: dict[int, RemovableHandle] = {}  # by id of a module whose own hooks are still to be called
        self.handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in (*self.handles, *self.last_hooks.values()):
            handle.remove()
        self.last_hooks.clear()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not report the forward passes in this block, which must begin and end outside of any."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def _begin(self, module: nn.Module, args: Any) -> None:
        """Global forward pre-hook; nothing may be compared while a CUDA graph is captured."""
        if self.is_paused:
            return
        if not is_capturing() and self.on_begin(module) and module._forward_hooks and id(module) not in self.last_hooks:
            self.last_hooks[id(module)] = module.register_forward_hook(self._end_of_own_hooks, always_call=True)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Global forward hook: the forward pass has ended, unless hooks of the module are still to be called."""
        if not self.is_paused and not is_capturing() and id(module) not in self.last_hooks:
            self.on_end(module)

    def _end_of_own_hooks(self, module: nn.Module, args: Any, output: Any) -> None:
        """Last hook of a module: its forward pass and its other hooks have ended."""
        self.last_hooks.pop(id(module)).remove()
        if not is_capturing():
            self.on_end(module)

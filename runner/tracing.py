"""Call functions before and after the forward pass of every module of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

Begin = Callable[[str, nn.Module, Any, Any], None]  # name, module, args, kwargs
End = Callable[[str, nn.Module, Any, Any, Any], None]  # name, module, args, kwargs, output


def ignore_call(*_: Any) -> None:
    """Do nothing: the default of `begin` and `end` in `tracing`, for callers that need only one of them."""


@contextmanager
def tracing(
    model: nn.Module, begin: Begin = ignore_call, end: End = ignore_call, *, always_ends: bool = False
) -> Iterator[None]:
    """Within the `with` block, call `begin` before and `end` after each forward pass of each module of the model.

    `begin` is called with (name, module, args, kwargs), `end` with (name, module, args, kwargs, output). `name` is the name
    of the module in `named_modules()`, "" for the model itself. Scripted modules are left out. If `begin` or `end` raises an
    exception, the forward pass ends with this exception. `always_ends`: call `end` also after a pass that raised, with None
    as the output.
    """
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # it takes no such hooks
            continue
        handles.append(module.register_forward_pre_hook(partial(begin, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(end, name), with_kwargs=True, always_call=always_ends))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

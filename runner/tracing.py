"""Call functions before and after the forward pass of every module of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

Begin = Callable[[str, nn.Module, Any, Any], None]  # name, module, args, kwargs
End = Callable[[str, nn.Module, Any, Any, Any], None]  # name, module, args, kwargs, output


def ignore_call(*_: Any) -> None:
    """Ignore the call of a module: the default where a caller needs only `begin` or only `end`."""


@contextmanager
def tracing(model: nn.Module, begin: Begin = ignore_call, end: End = ignore_call) -> Iterator[None]:
    """Within the block, call `begin` before each forward pass of a module, and `end` after it.

    `begin` gets (name, module, args, kwargs), `end` also gets the output. All modules are traced, each under its first name;
    the name of the model itself is "". An exception of `begin` or `end` ends the forward pass.
    """
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(begin, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(end, name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

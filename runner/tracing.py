"""Watching a forward pass: what is called, in which order, with what, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

Begin = Callable[[str, nn.Module, Any, Any], None]
End = Callable[[str, nn.Module, Any, Any, Any], None]


def ignored(*_: Any) -> None:
    """Called for what nobody waits for."""


@contextmanager
def tracing(model: nn.Module, begin: Begin = ignored, end: End = ignored) -> Iterator[None]:
    """For as long as the block lasts, call `begin(name, module, args, kwargs)` before a call, `end(..., output)` after it.

    Of every module in the model, by its first name, the model itself included (its name is empty). Whatever the two raise
    ends the forward pass.
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

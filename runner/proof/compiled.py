"""What torch.compile has compiled so far, and a call before it compiles more: hooks that it sees make it compile again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import SGD


def has_compiled() -> bool:
    """Return whether torch.compile has compiled anything in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.convert_frame")
    return dynamo is not None and dynamo.FRAME_COUNTER > 0


def has_compiled_a_step() -> bool:
    """Return whether torch.compile holds code for the step of an optimizer; a hook on an optimizer would invalidate it."""
    if not has_compiled():
        return False
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

    step: Any = SGD.step  # torch wraps the step of each class in the same function, which calls the hooks
    return bool(_debug_get_cache_entry_list(step.__code__))


@contextmanager
def before_compiling(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` in this block each time before torch.compile compiles something."""
    import torch._dynamo.callback

    handler = torch._dynamo.callback.callback_handler

    def on_start(*_: Any) -> None:
        callback()

    handler.register_start_callback(on_start)
    try:
        yield
    finally:
        if on_start in handler.start_callbacks:  # `torch._dynamo.reset()` removes all
            handler.remove_start_callback(on_start)

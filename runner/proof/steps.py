"""Notice every optimizer step of the process: when it begins and when it has ended, whichever optimizer makes it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from types import FrameType
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

OnBegin = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], Any]
OnEnd = Callable[[Optimizer], None]


class StepHooks:
    """Calls `on_begin` before and `on_end` after each step of each torch optimizer, also of those created later.

    A step inside another step is not reported: `super().step()` in an overridden `step`, or the step of an optimizer that
    another one wraps. Hooks of other code run before `on_begin` and after `on_end`, so that what they write to a tensor does
    not count as written by the step. A step that raises has no end.

    Args:
        optimizers: those known already. The steps of an optimizer that has not called torch's `Optimizer.__init__`, or that
            is no torch optimizer, are not noticed.
        on_begin: called with (optimizer, args, kwargs) of the step; may return other (args, kwargs), or None.
        on_end: called with the optimizer.
    """

    def __init__(self, optimizers: Sequence[Optimizer], on_begin: OnBegin, on_end: OnEnd) -> None:
        self.on_begin, self.on_end = on_begin, on_end
        # The steps that run now, by id of the frame that calls the hooks: (optimizer, whether it is inside another step).
        self.open: dict[int, tuple[Optimizer, bool]] = {}
        self.handles: dict[int, tuple[RemovableHandle, RemovableHandle]] = {}  # by id of an optimizer
        self.is_paused = self.is_in_hook = False
        self.late_handle: RemovableHandle | None = None
        # Disabled for dynamo: a step that is compiled later makes as many graphs as without hooks, and calls them each time.
        self.before_step, self.after_step = torch.compiler.disable(self._begin), torch.compiler.disable(self._end)
        for optimizer in optimizers:
            self._attach(optimizer)
        self.attach = torch.compiler.disable(self._attach)

        def before_any_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # torch 2.6 disables functions alone
            self._attach_and_order(optimizer, args, kwargs)

        self.global_handle = register_optimizer_step_pre_hook(torch.compiler.disable(before_any_step, recursive=False))
        _global_optimizer_pre_hooks.move_to_end(self.global_handle.id, last=False)  # type: ignore[attr-defined]

    def remove(self) -> None:
        """Remove all hooks; if called in one of them, when the step has ended, for torch is iterating over its hooks."""
        self.is_paused = True
        if self.is_in_hook:
            self.late_handle = register_optimizer_step_post_hook(torch.compiler.disable(self._remove_after_step))
            return
        self.global_handle.remove()
        for handles in self.handles.values():
            for handle in handles:
                handle.remove()
        self.handles.clear()
        self.open.clear()
        if self.late_handle is not None:
            self.late_handle.remove()

    def _remove_after_step(self, *_: Any) -> None:
        """Global post-hook: remove all hooks; this one too if torch has none to call after it, else on leaving."""
        late = self.late_handle
        assert late is not None
        is_last = next(reversed(_global_optimizer_post_hooks)) == late.id  # type: ignore[call-overload]
        self.late_handle = late if is_last else None
        self.remove()
        self.late_handle = late

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not report the steps in this block; the audit steps copies of optimizers in it."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def _attach(self, optimizer: Optimizer) -> None:
        """Register a pre-hook and a post-hook on the optimizer, if it can have hooks."""
        if hasattr(optimizer, "_optimizer_step_post_hooks"):
            pre = optimizer.register_step_pre_hook(self.before_step)
            self.handles[id(optimizer)] = pre, optimizer.register_step_post_hook(self.after_step)

    def _attach_and_order(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Before each step: register hooks on an optimizer seen for the first time, and put them next to the step itself.

        torch calls the global pre-hooks, then the optimizer's own, then the step, its own post-hooks, the global post-hooks.
        """
        if self.is_paused:
            return
        handles = self.handles.get(id(optimizer))
        before: Any = optimizer._optimizer_step_pre_hooks  # an OrderedDict
        after: Any = optimizer._optimizer_step_post_hooks
        if handles is None or handles[0].hooks_dict_ref() is not before:  # or an optimizer with the same id is gone
            self.attach(optimizer)
            handles = self.handles[id(optimizer)]
        pre, post = handles[0].id, handles[1].id
        if next(reversed(before), pre) != pre and pre in before:  # other code may have removed it
            before.move_to_end(pre)
        if next(iter(after), post) != post and post in after:
            after.move_to_end(post, last=False)

    def _begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step pre-hook: report the step, unless it is inside another one; its frame stays in `open` until it has ended."""
        if self.is_paused:
            return None
        frame = _frame_of_step(sys._getframe(1))
        if self.open:  # this step is inside another one, or the last one raised and has left the stack
            outer = {id(each) for each in _frames_from(frame.f_back)}
            self.open = {key: step for key, step in self.open.items() if key in outer}
        is_nested = bool(self.open)
        self.open[id(frame)] = optimizer, is_nested
        return None if is_nested else self._call(self.on_begin, optimizer, args, kwargs)

    def _end(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Step post-hook: report that the step has ended, unless it is inside another one or began before the hooks."""
        if self.is_paused:
            return
        key = id(_frame_of_step(sys._getframe(1)))
        if key in self.open:
            begun, is_nested = self.open.pop(key)
            if begun is optimizer and not is_nested:
                self._call(self.on_end, optimizer)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function while torch iterates over its hooks, and return its result."""
        self.is_in_hook = True
        try:
            return function(*args)
        finally:
            self.is_in_hook = False


def _frame_of_step(frame: FrameType) -> FrameType:
    """Return the frame of torch's wrapper around `step`, which calls the hooks; it runs until the step has ended.

    `frame`: the one that called a hook.
    """
    for caller in _frames_from(frame):
        if caller.f_globals.get("__name__") == "torch.optim.optimizer":
            return caller
    return frame


def _frames_from(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def closure_of_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the closure in the arguments of `optimizer.step`, or None; `args` begins with the optimizer."""
    if len(args) == 1:
        closure = kwargs.get("closure")
    else:
        is_first = "closure" in list(signature(type(optimizer).step).parameters)[1:2]
        closure = args[1] if is_first else kwargs.get("closure")
    return closure if callable(closure) else None


def with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], closure: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a step, with another closure."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured; nothing may be compared then."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def has_compiled() -> bool:
    """Return whether torch.compile has compiled anything in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.convert_frame")
    return dynamo is not None and dynamo.FRAME_COUNTER > 0


def has_compiled_a_step() -> bool:
    """Return whether torch.compile holds code for the step of an optimizer; a hook on an optimizer would invalidate it."""
    if not has_compiled():
        return False
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
    from torch._dynamo.convert_frame import input_codes

    step: Any = SGD.step  # torch wraps the step of each class in the same function, which calls the hooks
    if _debug_get_cache_entry_list(step.__code__):
        return True
    # A function that calls `step` may have been compiled together with it; its guards then say that there are no hooks.
    codes = [code for reference in input_codes.seen if (code := reference()) is not None]
    entries = [entry for code in codes for entry in _debug_get_cache_entry_list(code)]
    return any("_optimizer_step_pre_hooks" in str(entry.guard_manager) for entry in entries)


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

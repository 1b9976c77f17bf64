"""End a run early, on an interrupt (Ctrl-C, SIGTERM) or when its `timeout` is over, but not within an import."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

from runner.contract import EXIT_INTERRUPTED
from runner.runs.exits import exit_process

GRACE_SECONDS = 3.0  # how long after its timeout a run may still end by itself, before its process is ended
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def exit_at_once(*_: Any) -> None:
    """Handle an interrupt (SIGINT, SIGTERM) that comes before the run begins: exit the process at once with code 130.

    This signal handler raises no exception, because an exception inside an import or inside Hydra could be lost or reported
    as another error.
    """
    os.write(2, b"freeze-runner: interrupted\n")
    exit_process(EXIT_INTERRUPTED)


REPLACEABLE_HANDLERS = (signal.SIG_DFL, signal.default_int_handler, exit_at_once)


@cache
def import_dependencies() -> None:
    """Import what training needs, such as torch._dynamo, so that a later interrupt cannot stop an import half-way.

    Meanwhile no garbage is collected: going through all that is imported takes a tenth of the time of a short run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import_module("runner.experiment")
        import_module("torch._dynamo")
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # puts all objects among the oldest, which are rarely gone through
        if was_enabled:
            gc.enable()


@contextmanager
def handle_interrupts(handler: Any) -> Iterator[None]:
    """Make `handler` the signal handler of SIGINT and SIGTERM inside the block; restore the old handlers at its end.

    A signal for which another library has set a handler keeps that handler. Outside the main thread nothing changes.
    """
    current = {number: signal.getsignal(number) for number in INTERRUPTS} if _is_main_thread() else {}
    replaced = {number: previous for number, previous in current.items() if previous in REPLACEABLE_HANDLERS}
    for number in replaced:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in replaced.items():
            signal.signal(number, previous)


@contextmanager
def delay_interrupts() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Delay interrupts (SIGINT, SIGTERM) until the end of the block, so that files are written completely.

    Yields a function that returns a second context manager, for the part of the block that may be interrupted: the training.
    KeyboardInterrupt is raised at the start of the training if the interrupt came before the training, at once if it comes
    during the training, and at the end of the block if it comes after the training. It is raised only once; later interrupts
    are ignored. A signal for which another library has set a handler is not delayed.
    """
    raising, raised, pending = False, False, False

    def handle(*_: Any) -> None:
        nonlocal raising, raised, pending
        pending = not raised
        if raising:
            raising, raised, pending = False, True, False
            raise KeyboardInterrupt

    @contextmanager
    def raise_interrupts() -> Iterator[None]:
        nonlocal raising, raised, pending
        if pending:
            raised, pending = True, False
            raise KeyboardInterrupt
        raising = True
        try:
            yield
        finally:
            raising = False

    with handle_interrupts(handle):
        yield raise_interrupts
    if pending:
        raise KeyboardInterrupt


@contextmanager
def time_limit(
    seconds: float | None, log: Path, on_kill: Callable[[str], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Raise TimeoutError in the block once it has lasted `seconds`; None: there is no limit.

    Yields a function to call after each training step, which raises it too: the signal that raises it does not reach every
    block, for example not one outside the main thread.

    `on_kill`: if given, it is called with the reason if the block goes on nevertheless, see `watchdog`. It must end the
    process, see `end_once`.
    """
    start = monotonic()
    reason = f"the run was not done after timeout={seconds:g} seconds" if seconds is not None else ""

    def check() -> None:
        if seconds is not None and monotonic() - start > seconds:
            raise TimeoutError(reason)

    if seconds is None:
        yield check
        return
    with ExitStack() as stack:
        if on_kill is not None:
            kill = partial(on_kill, f"{reason}, and no step ended: its process was ended")
            stack.enter_context(watchdog(seconds + GRACE_SECONDS, log, kill))
        stack.enter_context(alarm(seconds, reason))
        yield check


@contextmanager
def alarm(seconds: float, reason: str) -> Iterator[None]:
    """Raise TimeoutError(reason) in the block after `seconds`, also where Python code sleeps or waits.

    Does nothing outside the main thread, without SIGALRM (Windows), or if another library handles that signal.
    """
    number = getattr(signal, "SIGALRM", None)
    if number is None or not _is_main_thread() or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return

    def raise_timeout(*_: Any) -> None:
        raise TimeoutError(reason)

    signal.signal(number, raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def watchdog(seconds: float, log: Path, kill: Callable[[], None]) -> Iterator[None]:
    """Call `kill()`, which must end the process, in another thread if the block lasts `seconds`.

    This ends a block that no signal ends, because a function of a library does not return to Python. If that function also
    keeps other Python threads from running, `kill` is not called: GRACE_SECONDS later the stack traces of all threads are
    written to the file `log`, and the process exits.
    """
    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    with log.open("a", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=file)  # needs no Python thread
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()


def _is_main_thread() -> bool:
    """Return True if this is the main thread, the only thread in which Python can set signal handlers."""
    return threading.current_thread() is threading.main_thread()

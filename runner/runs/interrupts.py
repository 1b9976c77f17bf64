"""End a run early: on an interrupt (Ctrl-C, SIGTERM), or when its `timeout` is over."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from runner.contract import EXIT_FAILED, EXIT_INTERRUPTED

GRACE_SECONDS = 1.0  # how long after its timeout a run may still end by itself, before its process is ended
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def exit_at_once(*_: Any) -> None:
    """Handle an interrupt (SIGINT, SIGTERM) that comes before the run begins: exit the process at once with code 130.

    This signal handler raises no exception, because an exception inside an import or inside Hydra could be lost or reported
    as another error.
    """
    os.write(2, b"freeze-runner: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


REPLACEABLE_HANDLERS = (signal.SIG_DFL, signal.default_int_handler, exit_at_once)


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
    """Yield a function to call after each training step: it raises TimeoutError once the block has lasted `seconds`.

    `seconds` None: there is no limit. `on_kill`: if given, a step that never ends is stopped too. One second after the
    limit, the stack traces of all threads are appended to the file `log`, `on_kill(reason)` is called, and the process
    exits. Give `on_kill` only if the process does nothing but this run.
    """
    start = monotonic()

    def check() -> None:
        if seconds is not None and monotonic() - start > seconds:
            raise TimeoutError(f"the run was not done after timeout={seconds:g} seconds")

    if seconds is None or on_kill is None:
        yield check
        return
    end_lock = threading.Lock()  # acquired once: by `kill`, or at the end of the block

    def kill() -> None:
        if not end_lock.acquire(blocking=False):
            return
        try:
            with log.open("a", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
            on_kill(f"the run was not done after timeout={seconds:g} seconds, and no step ended: its process was ended")
        finally:
            os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds + GRACE_SECONDS, kill)
    timer.daemon = True
    with log.open("a", encoding="utf-8") as file:
        # If a step holds the interpreter lock, the timer's thread cannot run; faulthandler needs no Python thread.
        faulthandler.dump_traceback_later(seconds + 5 * GRACE_SECONDS, exit=True, file=file)
        timer.start()
        try:
            yield check
        finally:
            end_lock.acquire()
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()


def _is_main_thread() -> bool:
    """Return True if this is the main thread, the only thread in which Python can set signal handlers."""
    return threading.current_thread() is threading.main_thread()

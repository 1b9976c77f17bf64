"""What may end a run from outside: an interrupt (Ctrl-C, SIGTERM), and the seconds that it may take."""

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

GRACE = 1.0  # seconds beyond its limit that a run's step may take to end by itself, before its process is ended
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def leave_at_once(*_: Any) -> None:
    """The handler while nothing has begun: an exception amid an import, or in Hydra, would be lost or misread."""
    os.write(2, b"freeze-runner: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def on_interrupt(handler: Any) -> Iterator[None]:
    """For as long as the block lasts, SIGINT and SIGTERM go to this handler, where nobody else has set one."""
    was = {number: signal.getsignal(number) for number in INTERRUPTS} if _takes_signals() else {}
    ours = {number: before for number, before in was.items() if before in OURS}
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in ours.items():
            signal.signal(number, before)


OURS = (signal.SIG_DFL, signal.default_int_handler, leave_at_once)


@contextmanager
def interrupts_held_back() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold interrupts back while a run is written; yields a context in which the first one is raised.

    One that came before it is raised there, one that came after it, and was not the second, when all is written. Handlers
    of others are left alone.
    """
    raising, raised, pending = False, False, False

    def handle(*_: Any) -> None:
        nonlocal raising, raised, pending
        pending = not raised
        if raising:
            raising, raised, pending = False, True, False
            raise KeyboardInterrupt

    @contextmanager
    def let_through() -> Iterator[None]:
        nonlocal raising, raised, pending
        if pending:
            raised, pending = True, False
            raise KeyboardInterrupt
        raising = True
        try:
            yield
        finally:
            raising = False

    with on_interrupt(handle):
        yield let_through
    if pending:
        raise KeyboardInterrupt


@contextmanager
def time_limit(
    seconds: float | None, log: Path, on_end: Callable[[str], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Yields what to call between steps: it raises TimeoutError when the seconds are over.

    With `on_end` the limit is hard, for a process that has no other work: where no step ends within a second of grace, the
    stacks are appended to `log`, `on_end` is told the reason, and the process ends.
    """
    begun = monotonic()

    def check() -> None:
        if seconds is not None and monotonic() - begun > seconds:
            raise TimeoutError(f"the run was not done after timeout={seconds:g} seconds")

    if seconds is None or on_end is None:
        yield check
        return
    ending = threading.Lock()  # taken once: by whichever comes first, the end of the time or that of the block

    def end() -> None:
        if not ending.acquire(blocking=False):
            return
        try:
            with log.open("a", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
            on_end(f"the run was not done after timeout={seconds:g} seconds, and no step ended: its process was ended")
        finally:
            os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds + GRACE, end)
    timer.daemon = True
    with log.open("a", encoding="utf-8") as file:
        # The last resort: what holds the interpreter's lock keeps every Python thread from running, but not this.
        faulthandler.dump_traceback_later(seconds + 5 * GRACE, exit=True, file=file)
        timer.start()
        try:
            yield check
        finally:
            ending.acquire()
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()


def _takes_signals() -> bool:
    return threading.current_thread() is threading.main_thread()  # signals reach the main thread alone

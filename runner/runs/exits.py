"""What ends a process from inside a run, in the code of the user or of a library: `os._exit`, forked children, crashes."""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runner.contract import EXIT_DONE, EXIT_FAILED

STDERR = 2  # its file descriptor
exit_process = os._exit  # the function of Python itself; inside a run `os._exit` is `refuse_exit`


@dataclass(frozen=True)
class _Owner:
    """The process and the thread that carry out a run, and what ends both when another thread calls `os._exit`."""

    process: int
    thread: int
    end: Callable[[str], None]


_owners: list[_Owner] = []  # one for each `guard_process` that is in progress


def refuse_exit(status: int) -> NoReturn:
    """Take the place of `os._exit` inside a run: make the run fail, instead of ending its process without a record.

    Raises SystemExit in the thread that carries out the run. Another thread ends the process, after the run was recorded as
    failed. In a forked child, and outside a run, this is `os._exit`.
    """
    owner = _owners[-1] if _owners else None
    if owner and owner.process == os.getpid():
        reason = f"the code of the run called os._exit({status})"
        if owner.thread == threading.get_ident():
            raise SystemExit(reason)
        owner.end(reason)
    exit_process(status)


@contextmanager
def guard_process(end: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Inside the block, `os._exit` is `refuse_exit`; a child that is forked inside the block ends where it leaves the block.

    Yields a function that ends the process if it is such a child; call it before anything is written or printed.
    `end(reason)` is called if another thread of the process calls `os._exit`; it must end the process.
    """
    process = os.getpid()
    previous = os._exit

    def end_forked_child(status: int = EXIT_DONE) -> None:
        if os.getpid() != process:
            exit_process(status)

    _owners.append(_Owner(process, threading.get_ident(), end))
    os._exit = refuse_exit
    try:
        yield end_forked_child
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else EXIT_FAILED
        end_forked_child(code if isinstance(code, int) else EXIT_FAILED if code else EXIT_DONE)
        raise
    finally:
        end_forked_child()
        os._exit = previous
        _owners.pop()


@contextmanager
def crash_dumps_in(log: Path) -> Iterator[None]:
    """Inside the block, a crash of the process, such as by SIGSEGV, appends its stack traces to the file `log`."""
    was_enabled = faulthandler.is_enabled()
    with log.open("a", encoding="utf-8") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            if was_enabled:
                faulthandler.enable(STDERR)
            else:
                faulthandler.disable()

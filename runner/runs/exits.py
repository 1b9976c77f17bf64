"""What ends a process from inside a run, in the code of the user or of a library: `os._exit`, forked children, crashes."""

from __future__ import annotations

import atexit
import faulthandler
import gc
import io
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runner.contract import EXIT_DONE, EXIT_FAILED
from runner.errors import is_users

STDERR = 2  # its file descriptor
END_SECONDS = 600.0  # how long the files of a run and its sweep may take to write when another thread ends the process
exit_process = os._exit  # the function of Python itself; inside a run `os._exit` is `refuse_exit`


@dataclass(frozen=True)
class _Owner:
    """The process and the thread that carry out a run, and what ends both when another thread calls `os._exit`.

    `end(reason)` returns only if the run has ended meanwhile.
    """

    process: int
    thread: int
    end: Callable[[str], object]


_owners: list[_Owner] = []  # one for each `guard_process` that is in progress


def refuse_exit(status: int) -> NoReturn:
    """Take the place of `os._exit` inside a run: make the run fail, instead of ending its process without a record.

    Raises SystemExit in the thread that carries out the run. During the training another thread ends the process, after the
    run was recorded as failed; later it ends only itself. In a forked child, and outside a command, this is `os._exit`.
    """
    reason = f"the code of the run called os._exit({status})"
    for owner in [each for each in reversed(_owners) if each.process == os.getpid()]:
        if owner.thread == threading.get_ident():
            raise SystemExit(reason)
        owner.end(reason)
    exit_process(status)


@contextmanager
def end_once(end: Callable[[str], object], log: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function for other threads, which ends the process: it calls `end(reason)` and exits with code 1.

    The thread of the block then waits at the end of the block until the process exits; it writes nothing at the same time.
    After the block the function does nothing. The stack traces of all threads are appended to the file `log`. The process
    exits too if `end` raises an exception, which is printed, or takes more than END_SECONDS.

    An exception that a signal handler raises ends the waiting, so the block should end where no handler raises one.
    """
    lock, over = threading.Lock(), False

    def end_process(reason: str) -> None:
        with lock:
            if over:
                return
            try:
                with log.open("a", encoding="utf-8") as file:
                    faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=file)  # instead of an earlier limit
                    faulthandler.dump_traceback(file)
                    end(reason)
            except Exception:
                traceback.print_exc()
            finally:
                exit_process(EXIT_FAILED)

    try:
        yield end_process
    finally:
        with lock:
            over = True


@contextmanager
def guard_process(end: Callable[[str], object]) -> Iterator[Callable[[], None]]:
    """Inside the block, `os._exit` is `refuse_exit`; a child that is forked inside the block ends where it leaves the block.

    Yields a function that ends the process if it is such a child; call it before anything is written or printed.
    `end(reason)` is called if another thread of the process calls `os._exit`. It must end the process, see `end_once`, or
    only that thread: `sys.exit`. If it returns, because its block has ended, the block around this one handles the call.
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


def end_sooner() -> None:
    """Let the interpreter end without its last garbage collections, which go through all that torch has loaded.

    Does nothing if a Python file of the user was imported: an object of it may write a file when it is collected.
    """
    ours = ("__main__", "__mp_main__", "hydra_plugins")
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] not in ours]
    if not any(is_users(file) for module in modules if (file := getattr(module, "__file__", None))):
        gc.freeze()


def run_exit_handlers() -> None:
    """Do in a forked process what the interpreter does at the end of others: call exit handlers, and write open files."""
    atexit._run_exitfuncs()
    for each in gc.get_objects():
        if issubclass(type(each), (io.TextIOWrapper, io.BufferedWriter)):
            with suppress(OSError, ValueError):
                each.flush()

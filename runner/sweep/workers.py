"""The worker processes of a sweep on this machine: each is started once, and carries out one run after the other.

joblib's own processes do not serve here: if one of them dies, joblib ends all others (`TerminatedWorkerError`).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals

from runner.contract import EXIT_FAILED, EXIT_INTERRUPTED, RUNNING, STOP
from runner.errors import ConfigError
from runner.runs.exits import exit_process, run_exit_handlers
from runner.runs.interrupts import GRACE_SECONDS, delay_interrupts, import_dependencies
from runner.runs.record import error_line
from runner.sweep.grid import SweepRun
from runner.sweep.launch import WorkerDiedError
from runner.sweep.worker import Job

PRELOADED = ["runner.experiment", "torch._dynamo", __name__]  # what `import_dependencies` imports, and this module
# The variables from which numerical libraries read, when they are imported, how many threads they use.
THREADS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA", "NUMEXPR")


@dataclass(eq=False)
class Process:
    """A worker process, the connection to it, and when the run that it carries out has to end, in seconds of `monotonic`."""

    system: multiprocessing.process.BaseProcess
    connection: Connection
    deadline: float = float("inf")

    def end(self, seconds: float) -> int | None:
        """End the process, with SIGKILL if it has not ended by itself after `seconds`; return its exit code."""
        self.connection.close()
        self.system.join(max(0.0, seconds))
        if self.system.is_alive():
            self.system.kill()
            self.system.join()
        return self.system.exitcode


class Workers:
    """Worker processes: a context manager, at whose end none of them is left.

    A process is started when a run waits and fewer than `count` processes live. It imports torch once (on Linux all of them
    together: they are forked from one process that has imported it) and lives until the end of the block. If it dies, only
    its run is affected: the others go on, and another process takes its place.

    `job`: what the processes carry out. `seconds`: the most seconds that a run may take; its process is then killed.
    `on_death` is called each time a process has died during a run.
    """

    def __init__(self, job: Job, count: int, seconds: float | None, on_death: Callable[[], None]) -> None:
        self.count, self.seconds, self.on_death = count, seconds or float("inf"), on_death
        self.stop, self.pickled = Path(job.worker.sweep) / STOP, pickled(job)
        self.idle: list[Process] = []
        self.busy: dict[Process, int] = {}  # and the index of the run that each carries out
        self.context = process_context()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        with delay_interrupts():
            for process in self.busy:  # none, unless an interrupt or an error ended the block
                process.system.terminate()
            deadline = monotonic() + GRACE_SECONDS
            while self.idle or self.busy:
                process = self.idle.pop() if self.idle else self.busy.popitem()[0]
                process.end(deadline - monotonic())

    def start(self, runs: list[SweepRun]) -> list[Exception | None]:
        """Carry out the runs, one in each process at a time; return for each the exception that ended it, or None.

        It is a WorkerDiedError if the run's process died. Once the sweep's folder has a file `.stop`, no more runs begin.
        """
        waiting = deque(range(len(runs)))
        errors: list[Exception | None] = [None] * len(runs)
        with thread_limits(self.count):
            while waiting or self.busy:
                if self.stop.exists():
                    waiting.clear()
                while waiting and len(self.busy) < self.count:
                    index = waiting.popleft()
                    self.give(runs[index], index)
                for process in self.wait_for_any():
                    index = self.busy.pop(process)
                    errors[index] = self.result(process)
                    if isinstance(errors[index], WorkerDiedError) and (runs[index].folder / RUNNING).exists():
                        self.on_death()
        return errors

    def give(self, run: SweepRun, index: int) -> None:
        """Let a process that has nothing to do carry out a run."""
        living = [process for process in self.idle if process.system.is_alive()]
        process = living[0] if living else self.start_process()
        self.idle = living[1:]
        self.busy[process] = index
        process.deadline = monotonic() + self.seconds
        with suppress(OSError):  # it died meanwhile, and `wait_for_any` returns it
            process.connection.send((index, run.overrides))

    def start_process(self) -> Process:
        """Start another process; it ends by itself when this process has ended."""
        ours, theirs = self.context.Pipe()
        system = self.context.Process(target=serve, args=(theirs, self.pickled))  # type: ignore[attr-defined]
        system.start()
        theirs.close()
        return Process(system, ours)

    def wait_for_any(self) -> list[Process]:
        """Return the processes whose run has ended, or is over its time, or that have died; wait until there is one."""
        seconds = min((process.deadline for process in self.busy), default=monotonic()) - monotonic()
        ready = wait(
            [each for process in self.busy for each in (process.connection, process.system.sentinel)],
            None if seconds == float("inf") else max(0.0, seconds),
        )
        now = monotonic()
        return [
            process
            for process in self.busy
            if process.connection in ready or process.system.sentinel in ready or process.deadline <= now
        ]

    def result(self, process: Process) -> Exception | None:
        """Return the exception that ended the run of a process, or None; the process is then free for another run."""
        with suppress(EOFError, OSError):
            if process.connection.poll():
                error: Exception | None = process.connection.recv()
                self.idle.append(process)
                return error
        is_late = process.system.is_alive() and process.deadline <= monotonic()
        code = process.end(0 if is_late else GRACE_SECONDS)
        if is_late:
            return WorkerDiedError(f"the run was not done after hydra.launcher.timeout={self.seconds:g} seconds")
        return WorkerDiedError.from_exit_code(code)


def process_context() -> BaseContext:
    """Return how processes are started: forked from one process that has imported torch, or (not on Linux) afresh."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextmanager
def thread_limits(count: int) -> Iterator[None]:
    """Let the numerical libraries of processes that are started in the block share the cores, as joblib does.

    `count`: the number of processes. What the user's environment says is not changed.
    """
    from joblib import cpu_count

    names = [name for library in THREADS if (name := f"{library}_NUM_THREADS") not in os.environ]
    os.environ.update(dict.fromkeys(names, str(max(1, cpu_count() // count))))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


def pickled(value: object) -> bytes:
    """Return a value and Hydra's global state as bytes, for `unpickled`."""
    from joblib.externals import cloudpickle  # which pickles the lambdas in Hydra's state

    data: bytes = cloudpickle.dumps((value, Singleton.get_state()))
    return data


def unpickled(data: bytes) -> Any:
    """Return the value of `pickled`; Hydra's global state in this process becomes that of the process that pickled it."""
    setup_globals()
    value, state = pickle.loads(data)
    Singleton.set_state(state)
    return value


def serve(connection: Connection, pickled_job: bytes) -> None:
    """Carry out the runs that come through a connection, and answer each with its exception or None.

    Ends when the connection is closed, and when the process that started the sweep has ended.
    """
    end_with_sweep()
    import_dependencies()
    job = unpickled(pickled_job)
    with suppress(EOFError, OSError):
        while True:
            index, overrides = connection.recv()
            connection.send(error_in(job, overrides, index))
    run_exit_handlers()


def error_in(job: Job, overrides: list[str], index: int) -> Exception | None:
    """Carry out a run; return None, or the exception that it raised in a form that every process can unpickle."""
    try:
        job.carry_out(overrides, index)
    except OSError as error:
        return OSError(error.errno, error.strerror)
    except Exception as error:
        return RuntimeError(error_line(error))
    return None


def end_with_sweep() -> None:
    """Let this process end, as if interrupted, when the process that started the sweep has ended, or at an interrupt."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        sleep(GRACE_SECONDS)
        exit_process(EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a run it has nothing to write
    threading.Thread(target=wait_and_end, daemon=True).start()


def call_in_process(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function that needs torch in a process of its own, so that this process need not import torch.

    `count`: how many Workers there will be. Raises the ConfigError that the function raises. If it ends its process, raises
    SystemExit; if it crashes its process, nothing is raised.
    """
    context = process_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs, pickled((function, arguments))))  # type: ignore[attr-defined]
    with thread_limits(count):
        process.start()
    theirs.close()
    wait([ours, process.sentinel])
    with suppress(EOFError):
        if ours.poll():
            message: str | None = ours.recv()
            if message is not None:
                raise ConfigError(message)
            return
    process.join()
    if process.exitcode > 0:  # it has said why
        sys.exit(EXIT_FAILED)


def answer(connection: Connection, pickled_call: bytes) -> None:
    """Call a function, and send the text of the ConfigError that it raises, or None."""
    end_with_sweep()
    function, arguments = unpickled(pickled_call)
    message = None
    try:
        function(*arguments)
    except ConfigError as error:
        message = str(error)
    connection.send(message)
    run_exit_handlers()

"""Start the runs of a sweep. If a process dies, its runs are started again, until every run has ended."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hydra.plugins.launcher import Launcher

from runner.contract import LOG, STOP, Status
from runner.errors import ConfigError
from runner.runs.folder import logging_to, write_record
from runner.runs.job import initial_record
from runner.runs.record import error_line
from runner.sweep.grid import SweepRun
from runner.sweep.lock import detect_death, locked, wait_until_free
from runner.sweep.worker import error_of

log = logging.getLogger("runner")
Start = Callable[[list[SweepRun]], list[Exception | None]]  # starts runs; an exception that ended it, or None, for each
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class WorkerDiedError(Exception):
    """Raised in place of a run's result if the process that carried out the run has died; the text says how."""

    @classmethod
    def from_exit_code(cls, code: int | None) -> WorkerDiedError:
        """Return the error for a process that ended with this exit code; that of a signal is negative."""
        if code is not None and code < 0:
            names = {number.value: f" ({number.name})" for number in signal.Signals}
            return cls(f"killed by signal {-code}{names.get(-code, '')}")
        return cls(f"it ended with exit code {code} before the run had ended")


class DiskFullError(Exception):
    """Raised if the launcher could start no run because files could not be written."""


def launch(start: Start, batches: list[list[SweepRun]], sweep: Path, stop_on_error: bool) -> None:
    """Start the runs of a sweep, batch by batch, until every run has ended or the sweep's folder has a file `.stop`.

    `start`: starts runs, and returns for each an exception that ended it, or None. `batches`: lists of runs; the runs of a
    list are started together. `sweep`: the sweep's folder. `stop_on_error`: whether to create `.stop` when a run has failed.

    The runs' folders show which runs have ended; the others are started again. Hydra's launchers cannot be asked: if one
    process dies, Ray and submitit forget runs that go on. A run that is still in the launcher's queue may be started twice;
    the second start does nothing.

    A run whose process dies is started again together with others. If its process dies a second time, the run is started
    alone. If the process of a run that was started alone dies, the run is recorded as failed. With `stop_on_error` it is
    recorded as failed the first time.

    Raises ConfigError if no run of a batch could start, or DiskFullError if none could because files could not be written.
    """
    waiting, deaths = deque(batches), Counter[str]()
    while waiting and not (sweep / STOP).exists():
        batch = waiting.popleft()
        errors = dict(zip((run.hash for run in batch), start(batch), strict=True))
        wait_until_free([run.folder for run in batch])
        died = [run for run in batch if detect_death(run.folder)]
        remaining = [run for run in batch if not run.ended and run not in died]
        if len(remaining) == len(batch) and not (sweep / STOP).exists():
            error = next((error for error in errors.values() if error), None)
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise DiskFullError(str(error)) from error
            raise ConfigError(f"the launcher could not begin a run: {error_line(error) if error else 'it gave no reason'}")
        deaths.update(run.hash for run in died)
        if len(batch) == 1 or stop_on_error:
            for run in died:
                with suppress(OSError):  # the tables then say that the run left no record
                    record_end(run, "failed", reason_of_death(errors[run.hash]))
        else:
            waiting.extend([run] for run in died if deaths[run.hash] > 1)
            remaining += [run for run in died if deaths[run.hash] == 1]
        if remaining:
            waiting.appendleft(remaining)
        if stop_on_error and any(run.failed for run in batch):
            (sweep / STOP).touch()


def reason_of_death(error: Exception | None) -> str:
    """Return why a run has no record, from the exception that the launcher raised; see `WorkerDiedError`."""
    if isinstance(error, WorkerDiedError):
        return f"its process died: {error}"
    if isinstance(error, OSError):
        return f"its record could not be written ({error_line(error).split('. ')[0]})"
    return f"its process died ({error_line(error).split('. ')[0]})" if error else "its process died"


def check_reachable(address: str | None) -> None:
    """Raise ConfigError if nothing answers at `address`, the HOST:PORT of a Ray cluster. Ray would try for minutes.

    An address without a port, such as `auto`, is not checked, and neither is None.
    """
    host, colon, port = str(address).rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():  # `auto`, or no address
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"nothing answers at hydra.launcher.ray.init.address={address}: {error}") from error


def launch_once(launcher: Launcher, override_lists: list[list[str]]) -> Exception | None:
    """Let Hydra's launcher start a job for each list of overrides; return an exception that it or a job raised, or None."""
    try:
        jobs = launcher.launch(override_lists, initial_job_idx=0)
    except Exception as error:
        return error
    return next(filter(None, map(error_of, jobs)), None)


def record_end(run: SweepRun, status: Status, reason: str) -> None:
    """Write `run.json` and a line in the log of a run whose process ended without writing a `run.json`.

    `status`: how the run ended. `reason`: why. If the run has a `run.json`, nothing is written.
    """
    composed = run.composed
    record = initial_record(run.config, composed, composed.hydra.overrides.task)
    with locked(run.folder):
        if not run.ended:
            write_record(run.folder, {**record, "status": status, "reason": reason})
            with logging_to(run.folder / LOG):
                log.error("%s: %s", status, reason)

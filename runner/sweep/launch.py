"""Launching a sweep's cells until each has ended, whatever becomes of the processes that run them."""

from __future__ import annotations

import errno
import logging
import pickle
import socket
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path

from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher

from runner.config.check import check
from runner.contract import LOG, STOP, Status
from runner.errors import ConfigError
from runner.runs.folder import logging_to, write_record
from runner.runs.job import record_of
from runner.runs.record import one_line
from runner.sweep.grid import Cell
from runner.sweep.lock import died, locked, wait_until_free

log = logging.getLogger("runner")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class DiskFullError(Exception):
    """What a run writes could not be written."""


def launch(launcher: Launcher, batches: list[list[Cell]], sweep: Path, stop_on_error: bool) -> None:
    """Launch the cells batch by batch; where a process dies, launch what is left, and record the run that kills its process.

    When one process dies, some launchers end all others with it (joblib), and some leave them running and forget them
    (Ray, submitit). So the folders are asked, not the launcher: a run that was in flight, and is no more, is launched again
    with what is left, and if it was in flight at two deaths, alone: one that dies alone is the one. What a launcher forgot
    while it was queued may thus be launched twice; whichever comes first runs it. Raises ConfigError where no run could
    begin, and DiskFullError where that was because nothing could be written.
    """
    waiting, deaths = deque(batches), Counter[str]()
    while waiting and not (sweep / STOP).exists():
        batch = waiting.popleft()
        error = attempt(launcher, batch)
        wait_until_free([cell.folder for cell in batch])
        in_flight = [cell for cell in batch if died(cell.folder)]
        left = [cell for cell in batch if not cell.ended and cell not in in_flight]
        if len(left) == len(batch) and not (sweep / STOP).exists():
            if isinstance(error, OSError) and error.errno in FULL:
                raise DiskFullError(str(error)) from error
            raise ConfigError(f"the launcher could not begin a run: {one_line(error) if error else 'it gave no reason'}")
        deaths.update(cell.hash for cell in in_flight)
        if len(batch) == 1 or stop_on_error:
            for cell in in_flight:
                what = "its record could not be written" if isinstance(error, OSError) else "its process died"
                with suppress(OSError):  # the table then says that it left no record
                    record_end(cell, "failed", f"{what} ({one_line(error).split('. ')[0]})" if error else what)
        else:
            waiting.extend([cell] for cell in in_flight if deaths[cell.hash] > 1)
            left += [cell for cell in in_flight if deaths[cell.hash] == 1]
        if left:
            waiting.appendleft(left)
        if stop_on_error and any(cell.failed for cell in batch):
            (sweep / STOP).touch()


def refuse_unreachable(address: str | None) -> None:
    """Raise ConfigError where nothing answers at HOST:PORT; Ray would ask for minutes before it says so."""
    host, colon, port = str(address).rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():  # `auto`, or none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"nothing answers at hydra.launcher.ray.init.address={address}: {error}") from error


def attempt(launcher: Launcher, cells: list[Cell]) -> Exception | None:
    """Launch once; returns what the launcher raised, or a run, which raises only where it could not be recorded."""
    try:
        ended = launcher.launch([cell.overrides for cell in cells], initial_job_idx=0)
    except Exception as error:
        return error
    return next((job._return_value for job in ended if job.status is JobStatus.FAILED), None)


def record_end(cell: Cell, status: Status, reason: str) -> None:
    """Say in a run's folder why it did not come to say so itself, unless it has meanwhile."""
    composed = pickle.loads(cell.composed)
    record = record_of(check(composed), composed, composed.hydra.overrides.task)
    with locked(cell.folder):
        if not cell.ended:
            write_record(cell.folder, {**record, "status": status, "reason": reason})
            with logging_to(cell.folder / LOG):
                log.error("%s: %s", status, reason)

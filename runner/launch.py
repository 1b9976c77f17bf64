"""Launching a sweep's cells until each has ended, whatever becomes of the processes that run them."""

from __future__ import annotations

import logging
import pickle
import socket
from collections import deque
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher

from runner.claim import RUNNING, wait_until_free
from runner.config import check
from runner.errors import ConfigError
from runner.folder import LOG, logging_to, write_record
from runner.grid import Cell
from runner.record import brief, unmeasured
from runner.worker import STOP

log = logging.getLogger("runner")


def launch(launcher: Launcher, cells: list[Cell], sweep: Path) -> None:
    """Launch the cells; where a process dies, record whose it was and launch what is left.

    When one process dies, some launchers end all others with it (joblib) and some leave them running and forget them (Ray,
    submitit). So the folders are asked: a run that was in flight, and is no more, is launched again, alone, and is to
    blame if it dies again. Raises ConfigError where the launcher cannot begin a run.
    """
    # The launcher in this process keeps the config of every run that it launches at once.
    batches = deque([cell] for cell in cells) if isinstance(launcher, BasicLauncher) else deque([cells])
    while batches and not (sweep / STOP).exists():
        batch = batches.popleft()
        error = attempt(launcher, batch)
        wait_until_free([cell.folder for cell in batch])
        in_flight = [cell for cell in batch if cell.begun]
        left = [cell for cell in batch if not cell.begun and not cell.ended]
        if len(left) == len(batch) and not (sweep / STOP).exists():
            raise ConfigError(f"the launcher could not begin a run: {brief(error) if error else 'it gave no reason'}")
        if len(in_flight) == 1:
            what = "its record could not be written" if isinstance(error, OSError) else "its process died"
            record_death(in_flight[0], "failed", f"{what} ({brief(error).split('. ')[0]})" if error else what)
        else:
            for cell in in_flight:
                (cell.folder / RUNNING).unlink()
                batches.append([cell])
        if left:
            batches.appendleft(left)


def refuse_unreachable(address: str | None) -> None:
    """Raise ConfigError where nothing answers at HOST:PORT; Ray would ask for minutes before it says so."""
    host, colon, port = str(address).rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():  # `auto`, or none
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"nothing answers at hydra.launcher.ray.init.address={address}: {error}") from error


def attempt(launcher: Launcher, cells: list[Cell]) -> Exception | None:
    """Launch once; returns what the launcher raised, or a run, which raises only where it could not be recorded."""
    try:
        ended = launcher.launch([cell.overrides for cell in cells], initial_job_idx=0)
    except Exception as error:
        return error
    return next((job._return_value for job in ended if job.status is JobStatus.FAILED), None)


def record_death(cell: Cell, status: str, reason: str) -> None:
    """Say in a run's folder why it did not come to say so itself."""
    composed = pickle.loads(cell.composed)
    record = unmeasured(check(composed), composed, composed.hydra.overrides.task)
    write_record(cell.folder, {**record, "status": status, "reason": reason})
    (cell.folder / RUNNING).unlink(missing_ok=True)
    with logging_to(cell.folder / LOG):
        log.error("%s: %s", status, reason)

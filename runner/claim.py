"""A run's folder belongs to one process at a time: a file with a lock, which the system takes back when the process dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from runner.folder import RECORD

RUNNING = ".running"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder for as long as the block lasts; waits while another process holds it.

    The file goes when the run has left its record: one that stays, unlocked, is what a process that died leaves behind.
    """
    with (folder / RUNNING).open("w") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if (folder / RECORD).exists():
                (folder / RUNNING).unlink(missing_ok=True)


def begun(folder: Path) -> bool:
    """Whether a run began here and has left no record since."""
    return (folder / RUNNING).exists() and not (folder / RECORD).exists()


def held(folder: Path) -> bool:
    """Whether a living process holds this folder."""
    try:
        with (folder / RUNNING).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def wait_until_free(folders: list[Path], seconds: float = float("inf")) -> None:
    """Wait until no living process holds any of these folders, at most so long."""
    until = monotonic() + seconds
    for folder in folders:
        while held(folder) and monotonic() < until:
            sleep(0.05)

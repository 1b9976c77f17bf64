"""A run's folder belongs to one process at a time: a file with a lock, which the system takes back when the process dies."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol, TextIO

from runner.contract import RECORD, RUNNING
from runner.errors import ConfigError
from runner.runs.folder import discard


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder for as long as the block lasts; waits while another process holds it.

    The file goes when the run has left its record: one that stays, unlocked, is what a process that died leaves behind.
    """
    with _locked(folder / RUNNING):
        try:
            yield
        finally:
            if (folder / RECORD).exists():
                (folder / RUNNING).unlink(missing_ok=True)


def _locked(path: Path) -> TextIO:
    while True:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the one that held it has taken it away meanwhile: a lock on what nobody else can find is none


@contextmanager
def _if_free(folder: Path) -> Iterator[bool]:
    """Hold the folder of a run that has begun, where no living process does; yields whether it is held."""
    try:
        with (folder / RUNNING).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
    except (FileNotFoundError, BlockingIOError):
        yield False


def held(folder: Path) -> bool:
    """Whether a living process holds this folder."""
    with _if_free(folder) as free:
        return not free and (folder / RUNNING).exists()


def died(folder: Path) -> bool:
    """Whether a run began here and its process is no more; says so once, for its mark is then taken away."""
    with _if_free(folder) as free:
        if free:
            (folder / RUNNING).unlink(missing_ok=True)
        return free and not (folder / RECORD).exists()


class Run(Protocol):
    """A run of a sweep, as far as its claim is concerned."""

    @property
    def folder(self) -> Path: ...
    @property
    def finished(self) -> bool: ...


def clear(run: Run) -> None:
    """Take away what an earlier try left, unless a living process holds the folder or the run has finished by now."""
    if run.folder.is_dir() and not held(run.folder):
        with claimed(run.folder):
            if not run.finished:
                discard(run.folder, RECORD)
            discard(run.folder, RUNNING)


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that Hydra made, and that was never begun."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".hydra", RUNNING}:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_free(folders: list[Path], seconds: float = float("inf")) -> None:
    """Wait until no living process holds any of these folders, at most so long."""
    until = monotonic() + seconds
    for folder in folders:
        while held(folder) and monotonic() < until:
            sleep(0.05)


def refuse_without_locks(folder: Path) -> None:
    """Raise ConfigError on a file system that knows no locks: two processes could run the same run there."""
    try:
        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError as error:
        raise ConfigError(
            f"{folder} lies where files cannot be locked ({error}); give hydra.sweep.dir=DIR elsewhere"
        ) from error
    finally:
        discard(folder, ".lock")

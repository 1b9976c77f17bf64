"""A run's folder belongs to one process at a time: a lock, and a mark in the folder of a run in progress.

The system releases a lock when its process dies, so a mark without a lock and without a record is what a process that died
leaves behind. The locks of a sweep lie side by side in a folder of their own, for acquiring one creates its file.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol

from filelock import FileLock, Timeout

from runner.contract import HYDRA, LOCKS, RECORD, RUNNING
from runner.errors import ConfigError
from runner.runs.folder import discard


def lock(path: Path) -> FileLock:
    """The system's own lock on a file, never one that only a file's presence stands for: that would outlive its process."""
    return FileLock(path, fallback_to_soft=False)


def lock_of(folder: Path) -> FileLock:
    """The lock of a run's folder."""
    locks = folder.parent / LOCKS
    locks.mkdir(exist_ok=True)
    return lock(locks / folder.name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for as long as the block lasts, and mark it; waits while another process holds it.

    The mark goes when the run has left its record.
    """
    with lock_of(folder):
        (folder / RUNNING).touch()
        try:
            yield
        finally:
            if (folder / RECORD).exists():
                (folder / RUNNING).unlink(missing_ok=True)


@contextmanager
def _if_free(folder: Path) -> Iterator[bool]:
    """Hold the folder of a run that has begun, where no living process does; yields whether it is held."""
    if not (folder / RUNNING).exists():
        yield False
        return
    held = lock_of(folder)
    try:
        held.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def is_held(folder: Path) -> bool:
    """Whether a living process holds this folder."""
    with _if_free(folder) as free:
        return not free and (folder / RUNNING).exists()


def died(folder: Path) -> bool:
    """Whether a run began here and its process is no more; says so once, for its mark is then removed."""
    with _if_free(folder) as free:
        if free:
            (folder / RUNNING).unlink(missing_ok=True)
        return free and not (folder / RECORD).exists()


class Run(Protocol):
    """A run of a sweep, as far as its lock is concerned."""

    @property
    def folder(self) -> Path: ...
    @property
    def finished(self) -> bool: ...


def clear(run: Run) -> None:
    """Remove what an earlier try left, unless a living process holds the folder or the run has finished by now."""
    if run.folder.is_dir() and not is_held(run.folder):
        with locked(run.folder):
            if not run.finished:
                discard(run.folder, RECORD)
            discard(run.folder, RUNNING)


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that Hydra made, and that was never begun."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {HYDRA, RUNNING}:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_free(folders: list[Path], seconds: float = float("inf")) -> None:
    """Wait until no living process holds any of these folders, at most so long."""
    until = monotonic() + seconds
    for folder in folders:
        while is_held(folder) and monotonic() < until:
            sleep(0.05)


def refuse_without_locks(folder: Path) -> None:
    """Raise ConfigError on a file system that knows no locks: two processes could run the same run there."""
    probe = lock(folder / ".lock")
    try:
        probe.acquire(timeout=0)
    except Timeout:
        pass
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"{folder} lies where files cannot be locked ({error}); give hydra.sweep.dir=DIR elsewhere"
        ) from error
    finally:
        probe.release()
        discard(folder, ".lock")

"""Locks on the folders of a sweep's runs, so that two processes never carry out the same run at the same time.

A process acquires the run's lock and creates `.running` in its folder. The system releases the lock when the process dies,
so a `.running` without a lock and without a `run.json` means that a process died. The locks are files in a folder of their
own, because acquiring one creates its file.
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
from runner.runs.folder import remove_files


def system_lock(path: Path) -> FileLock:
    """Return a lock on a file, not acquired yet. The operating system releases it when the process dies."""
    return FileLock(path, fallback_to_soft=False)


def run_lock(folder: Path) -> FileLock:
    """Return the lock of a run's folder, not acquired yet. Its file is in `.locks`, beside the folder."""
    locks = folder.parent / LOCKS
    locks.mkdir(exist_ok=True)
    return system_lock(locks / folder.name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the lock of a run's folder, and keep it until the end of the block.

    Creates the file `.running` in the folder, and removes it at the end of the block if the run has a `run.json`.
    """
    with run_lock(folder):
        (folder / RUNNING).touch()
        try:
            yield
        finally:
            if (folder / RECORD).exists():
                (folder / RUNNING).unlink(missing_ok=True)


@contextmanager
def _try_lock(folder: Path) -> Iterator[bool]:
    """Try, without waiting, to acquire the lock of a run's folder until the end of the block; yield True on success.

    If the folder has no file `.running`, nobody uses it: the lock is not tried, and False is yielded.
    """
    if not (folder / RUNNING).exists():
        yield False
        return
    lock = run_lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return True if a living process is carrying out the run in this folder, so that it has the folder's lock."""
    with _try_lock(folder) as acquired:
        return not acquired and (folder / RUNNING).exists()


def detect_death(folder: Path) -> bool:
    """Return True if the process that carried out the run in this folder died before it wrote `run.json`.

    Also removes the file `.running` that it left, so that a second call returns False.
    """
    with _try_lock(folder) as acquired:
        if acquired:
            (folder / RUNNING).unlink(missing_ok=True)
        return acquired and not (folder / RECORD).exists()


class ClearableRun(Protocol):
    """The attributes of a SweepRun (one run of a sweep) that `clear_folder` needs."""

    @property
    def folder(self) -> Path: ...
    @property
    def finished(self) -> bool: ...


def clear_folder(run: ClearableRun) -> None:
    """Remove `run.json` and `.running`, which an earlier attempt at the run left, so that it can be started again.

    The `run.json` of a run that finished stays. Does nothing while a living process is carrying out the run.
    """
    if run.folder.is_dir() and not is_locked(run.folder):
        with locked(run.folder):
            if not run.finished:
                remove_files(run.folder, RECORD)
            remove_files(run.folder, RUNNING)


def remove_if_unused(folder: Path) -> None:
    """Remove the folder of a run that never began: one that has only Hydra's files and `.running`."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {HYDRA, RUNNING}:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_free(folders: list[Path], seconds: float = float("inf")) -> None:
    """Wait until no living process carries out a run in any of these folders, for at most `seconds` in all."""
    deadline = monotonic() + seconds
    for folder in folders:
        while is_locked(folder) and monotonic() < deadline:
            sleep(0.05)


def check_locks_work(folder: Path) -> None:
    """Raise ConfigError if files in this folder cannot be locked: two processes could then carry out the same run."""
    test_lock = system_lock(folder / ".lock")
    try:
        test_lock.acquire(timeout=0)
    except Timeout:
        pass
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"{folder} lies where files cannot be locked ({error}); give hydra.sweep.dir=DIR elsewhere"
        ) from error
    finally:
        test_lock.release()
        remove_files(folder, ".lock")

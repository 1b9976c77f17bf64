"""Locks on the folders of a sweep's runs, so that two processes never carry out the same run at the same time.

A process that carries out a run acquires the lock of the run's folder and creates the file `.running` in that folder. The
operating system releases the lock when the process dies. So if a folder has `.running` and no `run.json`, and its lock is
free, the process died. The lock files are in a folder of their own, `.locks`, because acquiring a lock creates its file.
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
    """Return a lock on the file `path`, not acquired yet. The operating system releases it when its process dies."""
    return FileLock(path, fallback_to_soft=False)


def run_lock(folder: Path) -> FileLock:
    """Return the lock of a run's folder, not acquired yet; its file is in the folder `.locks` beside the run's folder."""
    locks = folder.parent / LOCKS
    locks.mkdir(exist_ok=True)
    return system_lock(locks / folder.name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the lock of a run's folder, and keep the lock until the end of the block.

    Creates the file `.running` in the folder. At the end of the block, removes it if the folder has a `run.json`.
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
    """Try to acquire the lock of a run's folder, without waiting; yield True if it was acquired, otherwise False.

    An acquired lock is kept until the end of the block. If the folder has no file `.running`, no process is carrying out the
    run: False is yielded, and the lock is not acquired.
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
    """Return True if a living process is carrying out the run in this folder and therefore holds its lock."""
    with _try_lock(folder) as acquired:
        return not acquired and (folder / RUNNING).exists()


def detect_death(folder: Path) -> bool:
    """Return True if the process that carried out the run in this folder died before it wrote `run.json`.

    Also removes the file `.running` that the dead process left. So a second call for the same folder returns False.
    """
    with _try_lock(folder) as acquired:
        if acquired:
            (folder / RUNNING).unlink(missing_ok=True)
        return acquired and not (folder / RECORD).exists()


class ClearableRun(Protocol):
    """The attributes of a SweepRun (one run of a sweep) that `clear_folder` needs.

    `folder`: the run's folder. `finished`: whether the run trained to its end and its CSV files are complete.
    """

    @property
    def folder(self) -> Path: ...
    @property
    def finished(self) -> bool: ...


def clear_folder(run: ClearableRun) -> None:
    """Remove `run.json` and `.running`, left by an earlier attempt at a run, so that the run can be started again.

    If the run finished, its `run.json` is kept. While a living process is carrying out the run, nothing is removed.
    """
    if run.folder.is_dir() and not is_locked(run.folder):
        with locked(run.folder):
            if not run.finished:
                remove_files(run.folder, RECORD)
            remove_files(run.folder, RUNNING)


def remove_if_unused(folder: Path) -> None:
    """Remove a run's folder if the run never began: if the folder has nothing but `.hydra` and `.running`."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {HYDRA, RUNNING}:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_free(folders: list[Path], seconds: float = float("inf")) -> None:
    """Wait until no living process is carrying out a run in any of these folders, but at most `seconds` in total."""
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

"""Carry out one run of a sweep, in any process that Hydra's launcher starts."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from runner.config.schema import Config, Share
from runner.contract import INTERRUPT, RUNNING, SHARED, SLOTS, STOP, Status
from runner.runs.folder import remove_files
from runner.runs.job import execute_run
from runner.runs.read import read_record
from runner.sharing.folder import SharedFolder
from runner.sweep.lock import locked, remove_if_unused, system_lock

_own_slot: list[tuple[int, FileLock]] = []  # this process's slot and its lock, which is held until the process ends


@dataclass(frozen=True)
class Worker:
    """The callable that Hydra calls with the config of each run of a sweep, in any process that sees the same folders.

    Attributes:
        sweep: the absolute path of the sweep's folder.
        home: the current folder when the sweep was started; other processes change to it, to find the user's files.
        process: (host name, process id) of the process that started the sweep.
        before_exit: called with the reason if a run ends that process; other processes do not have it.
        checked: {name of a run's folder: its config}, of runs that need not be checked again; other processes have none.
        alike: {name of a run's folder: the number of runs of the sweep that begin with the same model and data}.
    """

    sweep: str
    home: str
    process: tuple[str, int]
    before_exit: Callable[[str], None] | None = None
    checked: Mapping[str, Config] = field(default_factory=dict)
    alike: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_this_process(cls, sweep: Path, **given: Any) -> Worker:
        """Return a Worker for a sweep that this process starts; `sweep` is the absolute path of the sweep's folder.

        `given`: the other attributes.
        """
        return cls(str(sweep), os.getcwd(), this_process(), **given)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "before_exit": None, "checked": {}}

    def __call__(self, composed: DictConfig) -> Status | None:
        """Carry out the run with the config `composed`, and return how it ended.

        Does nothing and returns None if the run already has a `run.json`, or if the sweep was stopped or interrupted. Raises
        KeyboardInterrupt if the run is interrupted and this process is the one that started the sweep.
        """
        folder, sweep = Path(HydraConfig.get().runtime.output_dir), Path(self.sweep)
        elsewhere = self.process != this_process()

        def on_error(error: BaseException | str) -> None:
            if composed.on_error == "stop":
                (sweep / STOP).touch()

        def before_exit(reason: str) -> None:
            on_error(reason)
            remove_files(folder, RUNNING)
            if self.before_exit is not None:
                self.before_exit(f"{folder.name}: {reason}")

        with locked(folder):
            if read_record(folder):
                return None
            if (sweep / STOP).exists() or (sweep / INTERRUPT).exists():
                remove_if_unused(folder)
                return None
            if elsewhere:
                os.chdir(self.home)
                select_accelerator(sweep)
            result = execute_run(
                composed,
                interrupt_check(sweep / INTERRUPT),
                on_error,
                before_exit=before_exit,
                shared=shared_folder(sweep, composed, self.alike.get(folder.name, 1)),
                checked=deepcopy(self.checked.get(folder.name)),
            )
        if result.status == "interrupted" and not elsewhere:
            raise KeyboardInterrupt
        return result.status


@dataclass(frozen=True)
class Job:
    """What a process needs to carry out any runs of a sweep, one after the other, without a launcher of Hydra.

    Attributes:
        context: Hydra's context, whose config loader composes the config of each run.
        config: Hydra's config of the sweep.
        worker: carries out each run.
    """

    context: HydraContext
    config: DictConfig
    worker: Worker

    def carry_out(self, overrides: list[str], number: int) -> Status | None:
        """Carry out the run with these overrides, the `number`-th of its job; return or raise what `worker` does."""
        composed = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(composed):
            composed.hydra.job.id = f"{composed.hydra.job.name}_{number}"
            composed.hydra.job.num = number
        HydraConfig.instance().set_config(composed)
        job = run_job(
            hydra_context=self.context,
            config=composed,
            task_function=self.worker,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if error := error_of(job):
            raise error
        status: Status | None = job.return_value
        return status


def shared_folder(sweep: Path, composed: DictConfig, alike: int) -> SharedFolder | None:
    """Return what the runs of the sweep in the folder `sweep` compute once; None with `sweep.share=none`.

    `alike`: how many of them begin with the same model and data as the run with the config `composed`.
    """
    if composed.sweep.share == Share.none.name:
        return None
    return SharedFolder(sweep / SHARED, int(composed.sweep.share_mb * 2**20), alike)


def error_of(job: JobReturn) -> Exception | None:
    """Return the exception that a job of Hydra raised, or None. `job.return_value` would raise it and print a line."""
    error: Exception | None = job._return_value if job.status is JobStatus.FAILED else None
    return error


def interrupt_check(flag: Path) -> Callable[[Any], None]:
    """Return a function to call after each training step: it raises KeyboardInterrupt once the file `flag` exists.

    The function looks for the file at most once a second. It takes one argument, which it ignores.
    """
    last_check = monotonic()

    def check(step: Any) -> None:
        nonlocal last_check
        if monotonic() - last_check > 1:
            last_check = monotonic()
            if flag.exists():
                raise KeyboardInterrupt

    return check


def this_process() -> tuple[str, int]:
    """Return (host name, process id) of this process."""
    return platform.node(), os.getpid()


def select_accelerator(sweep: Path) -> None:
    """Choose the GPU that this process uses, so that the processes of a sweep use different GPUs.

    The index of the GPU is `worker_slot(sweep)` modulo the number of GPUs. `sweep`: the sweep's folder. Does nothing without
    CUDA.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(worker_slot(sweep) % torch.cuda.device_count())


def worker_slot(sweep: Path) -> int:
    """Return a number, counted from 0, that no other living process of the sweep on this host has.

    The first call reserves the lowest free number for this process; later calls return the same number. `sweep`: the sweep's
    folder.
    """
    if not _own_slot:
        (sweep / SLOTS).mkdir(exist_ok=True)
        for number in count():
            lock = system_lock(sweep / SLOTS / f"{platform.node()}-{number}")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _own_slot.append((number, lock))
            break
    return _own_slot[0][0]

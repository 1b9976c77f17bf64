"""One run of a sweep, in whichever process a launcher gives it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.contract import INTERRUPT, SLOTS, STOP
from runner.runs.job import perform
from runner.runs.read import read_record
from runner.sweep.lock import lock, locked, remove_if_empty

_slot: list[tuple[int, FileLock]] = []  # the number of this process, and the lock that it holds until it ends


@dataclass(frozen=True)
class Worker:
    """Hydra's task function in a sweep. A launcher may send it to any process that sees the same folders.

    Attributes:
        sweep: the sweep's folder, absolute.
        home: the folder that the sweep was started in, from which a user's own modules and data are found.
        process: host and number of the sweep's own process.
    """

    sweep: str
    home: str
    process: tuple[str, int]

    @classmethod
    def of_this_process(cls, sweep: Path) -> Worker:
        return cls(str(sweep), os.getcwd(), this_process())

    def __call__(self, composed: DictConfig) -> None:
        """Carry out the run, unless another process has meanwhile, or the sweep is to stop."""
        folder, sweep = Path(HydraConfig.get().runtime.output_dir), Path(self.sweep)
        own = self.process != this_process()

        def failed(error: BaseException) -> None:
            if composed.on_error == "stop":
                (sweep / STOP).touch()

        with locked(folder):
            if read_record(folder):
                return
            if (sweep / STOP).exists() or (sweep / INTERRUPT).exists():
                remove_if_empty(folder)
                return
            if own:
                os.chdir(self.home)
                take_accelerator(sweep)
            result = perform(composed, interrupted_by(sweep / INTERRUPT), failed, own_process=own)
        if result.status == "interrupted" and not own:
            raise KeyboardInterrupt


def interrupted_by(flag: Path) -> Callable[[Any], None]:
    """What to call after a step: raises KeyboardInterrupt when the file is there, looking once a second."""
    looked = monotonic()

    def look(step: Any) -> None:
        nonlocal looked
        if monotonic() - looked > 1:
            looked = monotonic()
            if flag.exists():
                raise KeyboardInterrupt

    return look


def this_process() -> tuple[str, int]:
    """Host and number of this process."""
    return platform.node(), os.getpid()


def take_accelerator(sweep: Path) -> None:
    """Let this process compute on the accelerator of its slot, where its launcher leaves it to see several."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(slot(sweep) % torch.cuda.device_count())


def slot(sweep: Path) -> int:
    """The lowest number that no living process on this host holds; this process holds it until it ends."""
    if not _slot:
        (sweep / SLOTS).mkdir(exist_ok=True)
        for number in count():
            own = lock(sweep / SLOTS / f"{platform.node()}-{number}")
            try:
                own.acquire(timeout=0)
            except Timeout:
                continue
            _slot.append((number, own))
            break
    return _slot[0][0]

"""Read samples and collate them to batches, in this process or in a worker of torch's DataLoader."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from runner.errors import ConfigError, place_in_user_code
from runner.seeding import PrivateRandomness, derived_seed, one_thread
from runner.training.data.collate import refuse_samples
from runner.training.data.options import Loading
from runner.training.data.transforms import prepared

COLLATE = -3  # stands for the number of a sample in the seed under which a batch is collated
WORKER_DEATH = re.compile(  # in a message of torch's DataLoader
    r"DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited unexpectedly(?: with exit code -?\d+)?)"
)


class ReadError(Exception):
    """Raised if a sample cannot be read or a batch cannot be collated; the message says which one and why."""


class WorkerTraceback(Exception):
    """The cause of a ReadError: the traceback of the original error, which may have happened in another process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Request:
    """A batch that is to be read: the pass (`epoch`, from 0), its number in the pass (from 1), and its samples' numbers."""

    epoch: int
    number: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Failure:
    """What stands in place of what could not be read: a message, the traceback, whether the config is to blame."""

    message: str
    details: str
    is_config: bool

    def throw(self) -> NoReturn:
        """Raise a ConfigError or a ReadError with the message."""
        raise (ConfigError if self.is_config else ReadError)(self.message) from WorkerTraceback(self.details)


def failure_of(error: Exception, what: str) -> Failure:
    """Return the Failure for an error that was raised while `what` was done, such as `sample 7 of 30`.

    Raises a TimeoutError again, unless this is a worker process: the timeout of the run may end any line.
    """
    if isinstance(error, TimeoutError) and get_worker_info() is None:
        raise error
    if isinstance(error, ConfigError):
        return Failure(str(error), traceback.format_exc(), True)
    parts = (what, place_in_user_code(error), type(error).__name__, " ".join(str(error).split()))
    return Failure(": ".join(filter(None, parts)), traceback.format_exc(), False)


class SampleReader(torch.utils.data.Dataset[Any]):
    """Reads batches of a dataset, each under random states that depend on the seed, the pass and the sample alone."""

    def __init__(self, dataset: Any, loading: Loading, seed: int) -> None:
        self.dataset, self.loading, self.seed = dataset, loading, seed

    def __getitem__(self, request: Request) -> Any:
        """Return the batch that is asked for, or the Failure of the first sample that could not be read."""
        samples, size = [], len(self.dataset)
        with one_thread(), PrivateRandomness(0) as randomness:
            for index in request.indices:
                randomness.reseed(derived_seed(self.seed, request.epoch, index))
                try:
                    samples.append(prepared(self.dataset[index], self.loading.transform, self.loading.input))
                except Exception as error:
                    return failure_of(error, f"sample {index} of {size}")
        return self.collated(samples, request)

    def collated(self, samples: list[Any], request: Request) -> Any:
        """Return the batch of the samples that were asked for, or a Failure."""
        collate: Callable[[list[Any]], Any] = self.loading.collate or default_collate
        with one_thread(), PrivateRandomness(derived_seed(self.seed, request.epoch, COLLATE, request.number)):
            try:
                if (batch := collate(samples)) is None:
                    raise ConfigError("data.collate returned None; it must return the batch of a list of samples")
                return batch
            except Exception as error:
                if self.loading.collate is None and not isinstance(error, TimeoutError):
                    try:
                        refuse_samples(samples, request.indices, error)
                    except ConfigError as refusal:
                        return failure_of(refusal, "")
                return failure_of(error, f"data.collate of samples {', '.join(map(str, request.indices[:8]))}")


class StreamReader(IterableDataset[Any]):
    """The samples of one pass over a dataset that can only be iterated over; a Failure ends them.

    The random states depend on a sample's place in the pass. The places of worker W of N are W, W + N, W + 2 N, ..., as
    torch's DataLoader takes one sample of each worker in turn.
    """

    def __init__(self, dataset: Any, loading: Loading, seed: int, epoch: int) -> None:
        self.dataset, self.loading, self.seed, self.epoch = dataset, loading, seed, epoch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        places = count(worker.id, worker.num_workers) if worker else count()
        whose = f" of worker {worker.id}" if worker and worker.num_workers > 1 else ""
        randomness, end = PrivateRandomness(0), object()
        iterator: Iterator[Any] | None = None
        for number, place in enumerate(places):
            with one_thread(), randomness:
                randomness.reseed(derived_seed(self.seed, self.epoch, place))
                try:
                    iterator = iter(self.dataset) if iterator is None else iterator
                    if (sample := next(iterator, end)) is end:
                        return
                    sample = prepared(sample, self.loading.transform, self.loading.input)
                except Exception as error:
                    sample = failure_of(error, f"sample {number}{whose} (counted from 0)")
            yield sample
            if isinstance(sample, Failure):
                return


def items_of(reader: Any, workers: int, sampler: Any = None) -> Iterator[Any]:
    """Yield what a dataset of torch gives, read by torch's DataLoader in so many worker processes; 0: in this process.

    `sampler`: what the dataset is asked for; None if it can only be iterated over. Draws nothing from the global random
    generators. Workers are forked on Linux: only that works inside the processes of joblib too. They may not use a GPU, but
    the process that forks them may. Raises ReadError or ConfigError in place of a Failure.
    """
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_begin_worker,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator().manual_seed(0),
    )
    for item in loader:
        if isinstance(item, Failure):
            item.throw()
        yield item


def _unchanged(item: Any) -> Any:
    """Return the item; a worker must be able to import the function."""
    return item


def _begin_worker(worker: int) -> None:
    """Let the run alone end its worker processes: Ctrl-C, which a terminal sends to a group of processes, misses them.

    Otherwise torch would take a worker that was interrupted for one that died, and raise an error. A thread of the worker
    prints no traceback if it loses its connection to the run.
    """
    sys.excepthook = lambda *_: None
    if hasattr(os, "setpgrp"):
        os.setpgrp()


@contextmanager
def explained_worker_death() -> Iterator[None]:
    """Raise ReadError in place of the error of torch's DataLoader about a worker process that died.

    torch raises it in a signal handler, so at any line of the block, also in a training step; or, caused by it, where
    it waits for a batch. The first of the two tells the signal or the exit code.
    """
    try:
        yield
    except RuntimeError as error:
        texts = [str(each) for each in (error.__cause__, error)]
        ends = [found[1].replace("is ", "was ").strip() for found in map(WORKER_DEATH.search, texts) if found]
        if not ends:
            raise
        raise ReadError(f"data: a worker process {ends[0]}; give data.workers=0 to see the error itself") from error

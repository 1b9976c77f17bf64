"""Read a dataset in batches with torch's DataLoader: the same bits with any number of worker processes.

Every sample is read, and every batch collated, under random states that depend on the seed, the pass and the sample alone;
the process's own states stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from runner.errors import ConfigError
from runner.seeding import derived_seed
from runner.training.data.options import Loading, takes_loading
from runner.training.data.reading import Failure, Request, SampleReader, StreamReader, items_of
from runner.training.data.sharing import refuse_unless_shared_out
from runner.training.data.source import HELD_OUT, Source, as_source
from runner.training.data.split import class_count, targets_of, train_and_held_out

ORDER = -1  # stands for the number of a sample in the seed of the order of a pass


@takes_loading
def from_dataset(dataset: Any, **loading: Any) -> Source:
    """Return a Source that reads a dataset: one with a length and an index, or one that can only be iterated over.

    `loading`: the attributes of Loading. Raises ConfigError if one of them, or the dataset, is wrong.
    """
    options = Loading(**loading)
    if isinstance(dataset, DataLoader):
        raise ConfigError("data.dataset gives a DataLoader, which makes batches itself; give data=custom data._target_=...")
    if isinstance(dataset, (str, bytes, Mapping)):
        parts = f" of {', '.join(map(str, dataset))}" if isinstance(dataset, Mapping) else ""
        raise ConfigError(f"data.dataset gives a {type(dataset).__name__}{parts}; give one dataset")
    if _has_index(dataset):
        return Samples(dataset, options)
    if isinstance(dataset, Iterator) and not isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"data.dataset gives a {type(dataset).__name__}, an iterator, which can be read only once; give a list of the "
            "samples, or an object whose __iter__ begins anew"
        )
    if hasattr(dataset, "__iter__"):
        return Stream(dataset, options)
    raise ConfigError(
        f"data.dataset gives a {type(dataset).__name__}; give a dataset, with __len__ and __getitem__ or with __iter__"
    )


def _has_index(dataset: Any) -> bool:
    """Return whether a dataset has a length and an index. An IterableDataset inherits `__getitem__`, which only raises."""
    return not isinstance(dataset, IterableDataset) and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


class Samples:
    """A dataset with a length and an index. Raises ConfigError if it is empty, or if what is held out leaves nothing."""

    def __init__(self, dataset: Any, loading: Loading) -> None:
        self.dataset, self.loading = dataset, loading
        self.test: Source | None = None
        self.size = len(dataset)
        if not self.size:
            raise ConfigError(f"data is empty: {type(dataset).__name__} has no samples")
        targets = targets_of(dataset) if loading.classes or loading.holdout else None
        found = class_count(dataset, targets)
        if loading.classes and 1 < loading.classes < (found or 0):  # one output is no class: a regression
            raise ConfigError(
                f"data has targets of {found} classes, the model's head has {loading.classes}; give model.classes={found}"
            )
        self.trained, self.held_out = list(range(self.size)), list[int]()
        if loading.holdout:
            self.trained, self.held_out = train_and_held_out(dataset, targets, loading.holdout)

    def length(self) -> int | None:
        return self.loading.batch_count(len(self.trained))

    def read(self, seed: int, epoch: int, count: int) -> Iterator[Any]:
        return self._read(self._requests(seed, epoch)[:count], seed, self.loading)

    def reread(self, seed: int) -> Any | None:
        first = replace(self._requests(seed, 0)[0], epoch=1)
        return next(self._read([first], seed, replace(self.loading, workers=0)))

    def hold_out(self, make: Callable[[], Any]) -> None:
        self.test = held_out_source(make, self.loading)

    def read_held_out(self, seed: int) -> Iterator[Any] | None:
        if self.test is not None:
            return self.test.read(0, HELD_OUT, sys.maxsize)
        if not self.held_out:
            return None
        return self._read(self._in_batches(self.held_out, HELD_OUT), 0, self.loading.of_held_out)

    def _requests(self, seed: int, epoch: int) -> list[Request]:
        """Return the batches of a pass that are to be read, in their order."""
        indices = self.trained
        if self.loading.shuffle:
            generator = torch.Generator().manual_seed(derived_seed(seed, epoch, ORDER))
            indices = [indices[position] for position in torch.randperm(len(indices), generator=generator).tolist()]
        return self._in_batches(indices, epoch)[: self.length()]

    def _in_batches(self, indices: list[int], epoch: int) -> list[Request]:
        """Return requests for batches of these samples; the last one may be smaller."""
        size = self.loading.batch_size
        starts = range(0, len(indices), size)
        return [Request(epoch, number, tuple(indices[i : i + size])) for number, i in enumerate(starts, 1)]

    def _read(self, requests: list[Request], seed: int, loading: Loading) -> Iterator[Any]:
        """Yield the batches that are asked for, read as `loading` says."""
        if len(self.dataset) < self.size:
            raise ConfigError(
                f"data: the dataset had {self.size} samples and now has {len(self.dataset)}; give one that keeps its length"
            )
        return items_of(SampleReader(self.dataset, loading, seed), loading.workers, sampler=requests)


class Stream:
    """A dataset that can only be iterated over. Raises ConfigError if samples are to be held out from it.

    With two or more workers, the dataset must give each of them other samples, as torch asks; if two workers read the
    same samples, ConfigError is raised. Samples are collated in this process, so that a batch has the samples of all
    workers in turn.
    """

    def __init__(self, dataset: Any, loading: Loading) -> None:
        self.dataset, self.loading = dataset, loading
        self.test: Source | None = None
        self.is_shared_out = loading.workers < 2
        if loading.holdout:
            raise ConfigError(
                f"data.holdout needs samples with an index, and a {type(dataset).__name__} has none; give data.test"
            )

    def length(self) -> int | None:
        try:
            return self.loading.batch_count(len(self.dataset))
        except TypeError:
            return None

    def read(self, seed: int, epoch: int, count: int) -> Iterator[Any]:
        if not self.is_shared_out:  # this is tried once
            refuse_unless_shared_out(self.dataset, self.loading)
            self.is_shared_out = True
        reader, size = SampleReader(self.dataset, self.loading, seed), self.loading.batch_size
        samples = items_of(StreamReader(self.dataset, self.loading, seed, epoch), self.loading.workers)
        for number in range(1, count + 1):
            found = list(islice(samples, size))
            if not found or (self.loading.drop_last and len(found) < size):
                return
            first = (number - 1) * size
            batch = reader.collated(found, Request(epoch, number, tuple(range(first, first + len(found)))))
            if isinstance(batch, Failure):
                batch.throw()
            yield batch

    def reread(self, seed: int) -> Any | None:
        if isinstance(self.dataset, Iterator):  # it goes on where the training's own reading is
            return None
        return next(self.read(seed, 1, 1), None)

    def hold_out(self, make: Callable[[], Any]) -> None:
        self.test = held_out_source(make, self.loading)

    def read_held_out(self, seed: int) -> Iterator[Any] | None:
        return None if self.test is None else self.test.read(0, HELD_OUT, sys.maxsize)


def held_out_source(make: Callable[[], Any], loading: Loading) -> Source:
    """Return what `make()` builds of `data.test` as a Source: a dataset, which is read as the other one but in its order.

    What is no dataset is taken for batches. Raises ConfigError if it is neither, or if samples are held out already.
    """
    if loading.holdout is not None:
        raise ConfigError("data.holdout and data.test are both given; give one of them")
    test, options = make(), loading.of_held_out
    if _has_index(test):
        return Samples(test, options)
    if isinstance(test, IterableDataset):
        return Stream(test, options)
    return as_source(test, make, "data.test")

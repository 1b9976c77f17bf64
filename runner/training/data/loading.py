"""Read a dataset in batches with torch's DataLoader: the same bits with any number of worker processes.

Every sample is read, and every batch collated, under random states that depend on the seed, the pass and the sample alone;
the process's own states stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from runner.errors import ConfigError, is_integer
from runner.seeding import derived_seed
from runner.tensors import same_bits, tensors_in
from runner.training.data.reading import Failure, ReadError, Request, SampleReader, StreamReader
from runner.training.data.source import HELD_OUT, Source, as_source
from runner.training.data.split import class_count, targets_of, train_and_held_out
from runner.training.data.structure import refuse_other_structure

ORDER = -1  # stands for the number of a sample in the seed of the order of a pass


@dataclass(frozen=True)
class Loading:
    """How a dataset is read: the keys of a config's node `data` that are the same for every dataset.

    Attributes:
        batch_size: samples in a batch; the last one of a pass may be smaller.
        workers: processes that read samples; 0 to read them in this process.
        shuffle: whether each pass has a new random order.
        drop_last: whether a last batch with fewer samples is left out.
        holdout: the share of the samples that are held out from training, from 0 to 1.
        transform: a function for the first part of a sample (`{field: function}` for others); see `transforms`.
        collate: a function that makes a batch of a list of samples; torch's `default_collate` if it is None.
        input: the shape that pictures are given, `[1 or 3, height, width]`; None to leave them as they are.
        classes: the number of classes of the model, or None.
    """

    batch_size: int = 4
    workers: int = 0
    shuffle: bool = True
    drop_last: bool = False
    holdout: float | None = None
    transform: Any = None
    collate: Callable[[list[Any]], Any] | None = None
    input: Sequence[int] | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        for key, least in (("batch_size", 1), ("workers", 0)):
            value = getattr(self, key)
            if not is_integer(value) or value < least:
                raise ConfigError(f"data.{key} is {value!r}; it must be a whole number of {least} or more")
        if self.holdout is not None and (isinstance(self.holdout, (bool, str)) or not 0 < self.holdout < 1):
            raise ConfigError(f"data.holdout is {self.holdout!r}; give the share to hold out, above 0 and below 1")
        if self.collate is not None and not callable(self.collate):
            raise ConfigError(f"data.collate is a {type(self.collate).__name__}; give a function of a list of samples")

    def batch_count(self, samples: int) -> int:
        """Return the number of batches of this many samples."""
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)


def from_dataset(dataset: Any, **loading: Any) -> Source:
    """Return a Source that reads a dataset: one with a length and an index, or one that can only be iterated over.

    `loading`: the attributes of Loading. Raises ConfigError if one of them, or the dataset, is wrong.
    """
    options = Loading(**loading)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return Samples(dataset, options)
    if hasattr(dataset, "__iter__"):
        return Stream(dataset, options)
    raise ConfigError(
        f"data.dataset gives a {type(dataset).__name__}; give a dataset, with __len__ and __getitem__ or with __iter__"
    )


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
        if loading.classes and found and found > loading.classes:
            raise ConfigError(
                f"data has targets of {found} classes, the model's head has {loading.classes}; give model.classes={found}"
            )
        self.trained, self.held_out = list(range(self.size)), list[int]()
        if loading.holdout:
            self.trained, self.held_out = train_and_held_out(dataset, targets, loading.holdout)

    def length(self) -> int | None:
        return self.loading.batch_count(len(self.trained))

    def read(self, seed: int, epoch: int, count: int) -> Iterator[Any]:
        return self._read(self._requests(seed, epoch)[:count], seed, self.loading.workers)

    def reread(self, seed: int) -> Any | None:
        first = replace(self._requests(seed, 0)[0], epoch=1)
        return next(self._read([first], seed, workers=0))

    def hold_out(self, test: Any) -> None:
        self.test = held_out_source(test, self.loading)

    def read_held_out(self, seed: int) -> Iterator[Any] | None:
        if self.test is not None:
            return self.test.read(0, HELD_OUT, sys.maxsize)
        return self._read(self._in_batches(self.held_out, HELD_OUT), 0, self.loading.workers) if self.held_out else None

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

    def _read(self, requests: list[Request], seed: int, workers: int) -> Iterator[Any]:
        """Yield the batches that are asked for."""
        reader = SampleReader(self.dataset, self.loading.transform, self.loading.collate, self.loading.input, seed)
        loader = data_loader(reader, workers, sampler=requests)
        return batches_of(loader)


class Stream:
    """A dataset that can only be iterated over. Raises ConfigError if samples are to be held out from it.

    With two or more workers, the dataset must give each of them other samples, as torch asks; if the first batches of two
    workers have the same bits, ConfigError is raised.
    """

    def __init__(self, dataset: Any, loading: Loading) -> None:
        self.dataset, self.loading = dataset, loading
        self.test: Source | None = None
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
        batches = self._read(seed, epoch)
        if self.loading.workers > 1:
            first_two = list(islice(self._read(seed, epoch), 2))
            if len(first_two) == 2 and _same_batch(*first_two):
                raise ConfigError(
                    f"data.workers={self.loading.workers}: each worker reads the same samples; "
                    "share them out by torch.utils.data.get_worker_info(), or give data.workers=1"
                )
        return islice(batches, count)

    def _read(self, seed: int, epoch: int) -> Iterator[Any]:
        """Yield the batches of a pass."""
        options, loading = (self.dataset, self.loading.transform, self.loading.collate, self.loading.input), self.loading
        reader = StreamReader(SampleReader(*options, seed), epoch, loading.batch_size, loading.drop_last)
        return batches_of(data_loader(reader, loading.workers))

    def reread(self, seed: int) -> Any | None:
        return next(self._read(seed, 1), None)

    def hold_out(self, test: Any) -> None:
        self.test = held_out_source(test, self.loading)

    def read_held_out(self, seed: int) -> Iterator[Any] | None:
        return None if self.test is None else self.test.read(0, HELD_OUT, sys.maxsize)


def held_out_source(test: Any, loading: Loading) -> Source:
    """Return what `data.test` built as a Source: a dataset, which is read as the other one but in its order, or batches.

    Raises ConfigError if it is neither, or if samples are held out already.
    """
    if loading.holdout is not None:
        raise ConfigError("data.holdout and data.test are both given; give one of them")
    options = replace(loading, shuffle=False, drop_last=False)
    if hasattr(test, "__getitem__") and hasattr(test, "__len__") and not isinstance(test, list):
        return Samples(test, options)
    if isinstance(test, torch.utils.data.IterableDataset):
        return Stream(test, options)
    return as_source(test, lambda: test, "data.test")


def data_loader(reader: Any, workers: int, sampler: Any = None) -> DataLoader:
    """Return torch's DataLoader over what yields whole batches. It draws nothing from the global random generators.

    Workers are forked where that is possible: it is what works inside the processes of joblib and Ray too.
    """
    return DataLoader(
        reader,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_unchanged,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator().manual_seed(0),
    )


def _unchanged(batch: Any) -> Any:
    """Return the batch; a worker must be able to import the function."""
    return batch


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """Yield the batches of a DataLoader. Raises ReadError or ConfigError, with the sample's number, if one is not read."""
    structure = None
    batches = iter(loader)
    number = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise ReadError(f"{' '.join(str(error).split())}; give data.workers=0 to see the error itself") from error
        if isinstance(batch, Failure):
            batch.throw()
        number += 1
        structure = refuse_other_structure(batch, number, structure)
        yield batch


def _same_batch(one: Any, other: Any) -> bool:
    """Return whether two batches have the same tensors, bit by bit."""
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=False))
    return bool(pairs) and all(same_bits(left, right) for left, right in pairs)

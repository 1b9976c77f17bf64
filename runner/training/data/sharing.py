"""Try whether the workers that read an iterable dataset share out its samples, as torch asks of the dataset."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations, islice
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from runner.errors import ConfigError
from runner.seeding import PrivateRandomness
from runner.tensors import leaves_in
from runner.training.data.options import Loading
from runner.training.data.reading import items_of
from runner.training.data.transforms import prepared

MOST_COMPARED = 16  # samples of each worker that are compared with those of the others


def refuse_unless_shared_out(dataset: Any, loading: Loading) -> None:
    """Raise ConfigError if two of the workers read the same samples of a dataset that can only be iterated over."""
    of_worker: dict[int, list[bytes]] = defaultdict(list)
    for worker, digest in items_of(FirstSamples(dataset, loading), loading.workers):
        of_worker[worker].append(digest)
    if any(reads_the_same(one, other) for one, other in combinations(of_worker.values(), 2)):
        raise ConfigError(
            f"data.workers={loading.workers}: each worker reads the same samples; "
            "share them out by torch.utils.data.get_worker_info(), or give data.workers=1"
        )


class FirstSamples(IterableDataset[Any]):
    """Pairs (number of a worker, digest of a sample), for the first MOST_COMPARED samples that each worker reads.

    All workers read them under the same random states.
    """

    def __init__(self, dataset: Any, loading: Loading) -> None:
        self.dataset, self.loading = dataset, loading

    def __iter__(self) -> Iterator[Any]:
        worker, digests = get_worker_info(), list[bytes]()
        with PrivateRandomness(0), suppress(Exception):  # StreamReader raises it again, and says which sample it was
            for sample in islice(self.dataset, MOST_COMPARED):
                digests.append(digest_of(prepared(sample, self.loading.transform, self.loading.input)))
        yield from ((worker.id if worker else 0, digest) for digest in digests)


def digest_of(sample: Any) -> bytes:
    """Return a digest of the types, shapes, bits and values in a sample."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in leaves_in(sample):
        value = leaf.detach().cpu().contiguous() if isinstance(leaf, Tensor) else leaf
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, numpy.ndarray) and value.dtype != object:
            digest.update(f"{value.dtype} {value.shape} ".encode() + value.tobytes())
        else:
            digest.update(f"{type(value).__name__} {value!r} ".encode())
    return digest.digest()


def reads_the_same(one: list[bytes], other: list[bytes]) -> bool:
    """Return whether the digests of the samples of two workers show that both read the same samples.

    Equal lists do, unless they have one sample alone: that may occur often in the data. So do two lists that have more than
    a quarter in common, as those of a dataset with a random order of its own, if no sample occurs twice in one of them.
    """
    if one == other:
        return len(set(one)) > 1
    have_repeats = len(set(one)) < len(one) or len(set(other)) < len(other)
    return not have_repeats and len(set(one) & set(other)) > max(1, min(len(one), len(other)) / 4)

"""Epochs: with `data.epochs=E` in the config, the samples of the first epoch are used E times, shuffled from the second on.

A data source yields only the first epoch. If there are more epochs, the samples are kept in memory and used again with the
same bits. A random augmentation in the source is therefore applied once, not in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from runner.tensors import leaves_in, map_leaves
from runner.training.data import to_device


class LazyBatch:
    """A batch that is put together and moved to the device only when its property `batch` is read.

    `structure`: tuples, lists and dicts, nested like those of the batch, with any value in place of each part. `parts`: the
    tensors (or other values) to put in these places, in order. A list of tensors as a part is stacked to one tensor. `ids`:
    the numbers of the batch's samples within the epoch, or None if the batch cannot be divided into samples.
    """

    def __init__(self, structure: Any, parts: Iterable[Any], ids: list[int] | None, device: torch.device) -> None:
        self._structure, self._parts, self.ids, self._device = structure, list(parts), ids, device

    @property
    def batch(self) -> Any:
        """The batch on the device, nested like the batches of the data source; put together anew at each access."""
        parts = iter(self._parts)
        return to_device(map_leaves(self._structure, lambda leaf: _stacked(next(parts))), self._device)

    def with_first(self, x: Tensor) -> list[Any]:
        """Return the batch `(x, y, ...)` as a list on the device, with the argument `x` in place of the batch's own x.

        The argument is used as it is. The batch's own x is neither stacked nor moved to the device.
        """
        return [x, *(to_device(_stacked(part), self._device) for part in self._parts[1:])]

    @property
    def is_flat_sequence(self) -> bool:
        """True if the batch is a tuple or list in which nothing is nested, such as `(x, y)`."""
        return type(self._structure) in (tuple, list) and len(self._structure) == len(self._parts)


def _stacked(part: Any) -> Any:
    """Return the samples stacked to one tensor if `part` is a list of samples (tensors), otherwise `part` itself."""
    return torch.stack(part) if isinstance(part, list) else part


def iterate_epochs(
    batches: Iterable[Any], *, count: int, epochs: int, seed: int, device: torch.device
) -> Iterator[LazyBatch]:
    """Yield the batches of all epochs: `count` batches of `batches`, then their samples again in `epochs - 1` epochs.

    Each later epoch has as many batches as the first, of the same sizes, in a new random order. Samples are shuffled across
    batches if two conditions hold: every batch has only tensors with one row per sample, and all samples have the same
    shapes and dtypes. Otherwise only the order of the batches is shuffled. With one epoch, nothing is kept in memory.
    """
    kept: list[tuple[Any, list[Any], list[int] | None]] = []  # (structure, parts, ids) of each batch of the first epoch
    samples = 0
    for batch in islice(batches, count):
        parts = leaves_in(batch)
        ids = list(range(samples, samples + len(parts[0]))) if _have_samples(parts) else None
        samples += len(ids or ())
        if epochs > 1:
            structure = map_leaves(batch, lambda leaf: None)
            kept.append((structure, _copied(parts), ids))  # the source or the task may write to the tensors later
        yield LazyBatch(batch, parts, ids, device)
    del batches
    generator = torch.Generator().manual_seed(seed)
    shuffles_samples = len({_sample_format(*batch) for batch in kept}) == 1
    rows = _sample_rows([parts for _, parts, _ in kept]) if shuffles_samples else []
    for _ in range(epochs - 1):
        if shuffles_samples:
            order = iter(torch.randperm(samples, generator=generator).tolist())
            for structure, _, first_ids in kept:
                ids = list(islice(order, len(first_ids or ())))
                yield LazyBatch(structure, [[part[index] for index in ids] for part in rows], ids, device)
        else:
            for index in torch.randperm(len(kept), generator=generator).tolist():
                structure, parts, ids = kept[index]
                yield LazyBatch(structure, _copied(parts), ids, device)


def _copied(parts: list[Any]) -> list[Any]:
    """Return the parts of a batch in a new list, with a copy of every tensor."""
    return [part.clone() if isinstance(part, Tensor) else part for part in parts]


def _have_samples(parts: list[Any]) -> bool:
    """Return whether all parts of a batch are tensors with one row per sample, and with the same number of rows, above 0."""
    return bool(parts) and all(isinstance(part, Tensor) and part.dim() and len(part) == len(parts[0]) > 0 for part in parts)


def _sample_format(structure: Any, parts: list[Any], ids: list[int] | None) -> Any:
    """Return a key that is equal for two batches if their samples can be mixed, and different otherwise.

    The key consists of the nesting of the batch, and of the dtype, device and shape of one sample in each part. A batch that
    cannot be divided into samples (`ids` is None) gets a key that equals no other.
    """
    return (repr(structure), *((part.shape[1:], part.dtype, part.device) for part in parts)) if ids else object()


def _sample_rows(batches: Sequence[list[Tensor]]) -> list[list[Tensor]]:
    """Return one list for each part of a batch (x, y, ...), with the rows of that part from all batches in order.

    `batches`: the parts of each batch. The rows are views of the batches' tensors, not copies.
    """
    return [[row for part in parts for row in part.unbind()] for parts in zip(*batches, strict=True)]

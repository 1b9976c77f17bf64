"""Epochs: with `data.epochs=E`, the samples of the first epoch are used in E epochs, shuffled by the seed in the later ones.

A source yields only the first epoch. If there are more, its samples are kept in memory and used again with the same bits: a
random augmentation by the source is applied once, not in each epoch.
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
    """A batch that is only put together and moved to the device when `batch` is read.

    `structure`: a nested value (tuples, lists, dicts) of the same structure as the batch. `parts`: what to put in the place
    of each of its leaves; a list of tensors is stacked. `ids`: the numbers of its samples within the epoch, or None if the
    batch cannot be divided into samples.
    """

    def __init__(self, structure: Any, parts: Iterable[Any], ids: list[int] | None, device: torch.device) -> None:
        self._structure, self._parts, self.ids, self._device = structure, list(parts), ids, device

    @property
    def batch(self) -> Any:
        """The batch, in the structure that its source yields, on the device."""
        parts = iter(self._parts)
        return to_device(map_leaves(self._structure, lambda leaf: _stacked(next(parts))), self._device)

    def with_first(self, x: Tensor) -> list[Any]:
        """Return the batch `(x, y, ...)` as a list with another x; its own x is neither stacked nor moved."""
        return [x, *(to_device(_stacked(part), self._device) for part in self._parts[1:])]

    @property
    def is_flat_sequence(self) -> bool:
        """Whether the batch is a tuple or list without nesting, such as `(x, y)`."""
        return type(self._structure) in (tuple, list) and len(self._structure) == len(self._parts)


def _stacked(part: Any) -> Any:
    """Return a list of samples as one tensor; anything else unchanged."""
    return torch.stack(part) if isinstance(part, list) else part


def iterate_epochs(
    batches: Iterable[Any], *, count: int, epochs: int, seed: int, device: torch.device
) -> Iterator[LazyBatch]:
    """Yield the batches of all epochs: the first `count` of `batches`, then the same samples shuffled into new batches.

    Each later epoch has the same number of batches, of the same sizes. Whole batches are shuffled if samples cannot be: if a
    batch contains anything but tensors with one sample per row, or the samples of two batches differ in shape or type. With
    one epoch, nothing is kept in memory.
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
    """Return the parts with every tensor copied."""
    return [part.clone() if isinstance(part, Tensor) else part for part in parts]


def _have_samples(parts: list[Any]) -> bool:
    """Return whether all parts are tensors with the same number of rows, one per sample."""
    return bool(parts) and all(isinstance(part, Tensor) and part.dim() and len(part) == len(parts[0]) > 0 for part in parts)


def _sample_format(structure: Any, parts: list[Any], ids: list[int] | None) -> Any:
    """Return a value that is equal for batches whose samples can be mixed; a unique object for a batch without samples."""
    return (repr(structure), *((part.shape[1:], part.dtype, part.device) for part in parts)) if ids else object()


def _sample_rows(batches: Sequence[list[Tensor]]) -> list[list[Tensor]]:
    """Return, for each part of a batch, the rows of all batches in one list; the rows are views, not copies."""
    return [[row for part in parts for row in part.unbind()] for parts in zip(*batches, strict=True)]

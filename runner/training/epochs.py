"""Passes over one run's samples: `data.epochs=E` gives those of the first pass again, in orders shuffled by the seed.

A source knows nothing of passes. The samples of the first are kept in memory where there is a second, and come back with
the same bits: what a source draws at random, an augmentation say, is drawn once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from runner.tensors import each_leaf, leaves_in
from runner.training.data import to_device


class LazyBatch:
    """A batch that is not gathered until it is asked for. `ids` number its samples, None where it has none to tell apart.

    `like`: a nested value of the same structure; `parts`: what stands in the place of each of its leaves.
    """

    def __init__(self, like: Any, parts: Iterable[Any], ids: list[int] | None, device: torch.device) -> None:
        self._like, self._parts, self.ids, self._device = like, list(parts), ids, device

    @property
    def batch(self) -> Any:
        """The batch as its source gave it, on the device."""
        parts = iter(self._parts)
        return to_device(each_leaf(self._like, lambda leaf: _gathered(next(parts))), self._device)

    def behind(self, first: Tensor) -> list[Any]:
        """The batch `(x, y, ...)` with another tensor in the place of x, which is not touched."""
        return [first, *(to_device(_gathered(part), self._device) for part in self._parts[1:])]

    @property
    def is_a_row_of_tensors(self) -> bool:
        """Whether it is a tuple or list of tensors, as `(x, y)` is."""
        return type(self._like) in (tuple, list) and len(self._like) == len(self._parts)


def _gathered(part: Any) -> Any:
    return torch.stack(part) if isinstance(part, list) else part  # rows of several batches


def drawn(batches: Iterable[Any], *, count: int, epochs: int, seed: int, device: torch.device) -> Iterator[LazyBatch]:
    """Up to `count` batches, pass after pass: the first as the source gives them, the others cut anew from its samples.

    A later pass has as many batches, of the same sizes. Where batches do not hold samples of one kind along the first
    dimension of each of their tensors, it is whole batches that are shuffled. RowStore does not grow with a single pass.
    """
    kept: list[tuple[Any, list[Any], list[int] | None]] = []
    samples = 0
    for batch in islice(batches, count):
        parts = leaves_in(batch)
        ids = list(range(samples, samples + len(parts[0]))) if _has_samples(parts) else None
        samples += len(ids or ())
        if epochs > 1:
            structure = each_leaf(batch, lambda leaf: None)
            kept.append((structure, _copied(parts), ids))  # a source may fill one tensor anew, a task may write to it
        yield LazyBatch(batch, parts, ids, device)
    del batches
    generator = torch.Generator().manual_seed(seed)
    alike = len({_kind(*one) for one in kept}) == 1
    rows = _rows([parts for _, parts, _ in kept]) if alike else []
    for _ in range(epochs - 1):
        if alike:
            order = iter(torch.randperm(samples, generator=generator).tolist())
            for like, _, was in kept:
                ids = list(islice(order, len(was or ())))
                yield LazyBatch(like, [[part[index] for index in ids] for part in rows], ids, device)
        else:
            for place in torch.randperm(len(kept), generator=generator).tolist():
                like, parts, ids = kept[place]
                yield LazyBatch(like, _copied(parts), ids, device)


def _copied(parts: list[Any]) -> list[Any]:
    return [part.clone() if isinstance(part, Tensor) else part for part in parts]


def _has_samples(parts: list[Any]) -> bool:
    """Whether all parts are tensors with the same number of samples along the first dimension."""
    return bool(parts) and all(isinstance(part, Tensor) and part.dim() and len(part) == len(parts[0]) > 0 for part in parts)


def _kind(like: Any, parts: list[Any], ids: list[int] | None) -> Any:
    """Equal for two batches whose samples can be in one; of its own kind where there are no samples."""
    return (repr(like), *((part.shape[1:], part.dtype, part.device) for part in parts)) if ids else object()


def _rows(batches: Sequence[list[Tensor]]) -> list[list[Tensor]]:
    """For each part of a batch, the samples of all batches, which share their memory."""
    return [[row for part in parts for row in part.unbind()] for parts in zip(*batches, strict=True)]

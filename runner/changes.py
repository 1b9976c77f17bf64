"""How far each tensor moved: a snapshot, and norms of the difference in one pass over both copies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from math import inf, nan, sqrt

import torch
from torch import Tensor, nn

from runner.tensors import Entry, entries, flat, same_bits

CHUNK = {"cpu": 1 << 15}  # elements that fit a core's cache, so that memory is read once; elsewhere launches cost more
CHUNK_ELSEWHERE = 1 << 24
SMALLEST_SQUARE = 1e-30  # below it the squares of a float32 tensor's elements may have lost digits


@dataclass(frozen=True)
class Change:
    """How far one tensor moved: Euclidean norms of the start and of the difference, the largest difference, any bit."""

    initial_l2: float
    change_l2: float
    change_max: float
    moved: bool

    @property
    def change_rel(self) -> float | None:
        """The change over the start; None where the start is 0."""
        return None if self.initial_l2 == 0 else self.change_l2 / self.initial_l2


@dataclass(frozen=True)
class Snapshot:
    """A model's tensors by name at one moment: what they were, and a copy of their values."""

    entries: dict[str, Entry]
    values: dict[str, Tensor]


def snapshot(model: nn.Module) -> Snapshot:
    """Copy every parameter and buffer; takes as much memory as they do."""
    found = entries(model)
    return Snapshot(found, {name: entry.tensor.detach().clone() for name, entry in found.items()})


def with_added(before: Snapshot, model: nn.Module) -> Snapshot:
    """The snapshot, followed by copies of whatever the model has now and had not then."""
    added = {name: entry for name, entry in entries(model).items() if name not in before.entries}
    copies = {name: entry.tensor.detach().clone() for name, entry in added.items()}
    return Snapshot({**before.entries, **added}, {**before.values, **copies})


def change(before: Tensor, after: Tensor | None) -> Change:
    """How far one tensor moved. One that is gone, or has another shape or type, has moved by NaN.

    Norms are computed in float32 or wider over chunks and summed in float64; those of integers, booleans and float64,
    and whatever float32 would let overflow or vanish, in float64. Extra memory: one chunk.
    """
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        return Change(nan, nan, nan, moved=True)
    moved = not same_bits(before, after)
    exact = not before.is_floating_point() or before.dtype is torch.float64
    old, new = flat(before, like=before), flat(after, like=before) if moved else None
    start, distance, largest = _norms(old, new, exact)
    if not exact and (_lost_digits(start) or (moved and _lost_digits(distance))):
        start, distance, largest = _norms(old, new, exact=True)
    return Change(sqrt(start), sqrt(distance), largest, moved)


def _norms(old: Tensor, new: Tensor | None, exact: bool) -> tuple[float, float, float]:
    """The squared norms of the start and of the difference, and the largest difference; `new` is None where it is equal."""
    size = CHUNK.get(old.device.type, CHUNK_ELSEWHERE)
    new_parts = new.split(size) if new is not None else repeat(None)
    squares, distances, largest = [], [], []
    for part, new_part in zip(old.split(size), new_parts, strict=False):
        start = _wide(part, exact)
        squares.append(_square(start))
        if new_part is not None:
            difference = (_wide(new_part, exact) - start).abs()
            distances.append(_square(difference))
            largest.append(difference.max())
    found = torch.stack([*squares, *distances, *largest]).tolist()  # one transfer from the device
    chunks, moved = len(squares), len(squares) + len(distances)
    return sum(found[:chunks]), sum(found[chunks:moved]), _largest(found[moved:])


def _wide(chunk: Tensor, exact: bool) -> Tensor:
    if chunk.is_complex():
        return chunk.cpu().to(torch.complex128)
    return chunk.cpu().double() if exact else chunk.float()  # on the CPU, for mps has no float64


def _square(values: Tensor) -> Tensor:
    # `sum` adds in pairs and keeps its digits; `dot` loses four of them where all elements are alike.
    return (torch.view_as_real(values) if values.is_complex() else values).square().sum()


def _largest(values: list[float]) -> float:
    return nan if any(value != value for value in values) else max(values, default=0.0)


def _lost_digits(square: float) -> bool:
    return square < SMALLEST_SQUARE or square == inf

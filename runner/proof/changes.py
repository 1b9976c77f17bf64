"""How far each tensor moved: a snapshot, and norms of the difference in one pass over both copies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from math import inf, nan, sqrt

import torch
from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.tensors import Entry, entries, equal_bits, flat

CHUNK = {"cpu": 1 << 17}  # elements that fit a core's cache, so that memory is read once; elsewhere launches cost more
CHUNK_ELSEWHERE = 1 << 18
SMALL = 1 << 12  # elements for which float64 costs no more than a second look at what float32 may have lost
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
    known = {id(entry.tensor) for entry in before.entries.values()}
    added = {
        name: entry for name, entry in entries(model).items() if id(entry.tensor) not in known and name not in before.entries
    }
    copies = {name: entry.tensor.detach().clone() for name, entry in added.items()}
    return Snapshot({**before.entries, **added}, {**before.values, **copies})


def change(before: Tensor, after: Tensor | None) -> Change:
    """How far one tensor moved. One that is gone, or has another shape or type, has moved by NaN.

    A complex number counts as two real ones. Norms are computed in float32 or wider over chunks and summed in float64;
    those of integers, booleans and float64, and whatever float32 would let overflow or vanish, in float64. Extra memory:
    a few chunks.
    """
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        return Change(nan, nan, nan, moved=True)
    after = after.to(before.device)
    old, new = flat(before, like=before), flat(after, like=before)
    moved = not equal_bits(old, new)
    exact = not before.is_floating_point() or before.dtype is torch.float64 or len(old) <= SMALL
    old, new = _reals(old), _reals(new)
    start, distance, largest = _norms(old, new if moved else None, exact)
    if not exact and (_lost_digits(start) or (moved and _lost_digits(distance))):
        start, distance, largest = _norms(old, new if moved else None, exact=True)
    return Change(sqrt(start), sqrt(distance), largest, moved)


def _norms(old: Tensor, new: Tensor | None, exact: bool) -> tuple[float, float, float]:
    """The squared norms of the start and of the difference, and the largest difference; `new` is None where it is equal."""
    size = CHUNK.get(old.device.type, CHUNK_ELSEWHERE) // (4 if exact else 1)  # which copies what it widens
    squares, distances, largest = [], [], []
    scratch = _wide(old[:0], exact).new_empty(min(size, len(old)))  # reused, for fresh memory costs more than the sums
    for part, new_part in zip(_split(old, size), repeat(None) if new is None else _split(new, size), strict=False):
        start, room = _wide(part, exact), scratch[: len(part)]
        # `sum` adds in pairs and keeps its digits; `dot` loses four of them where all elements are alike.
        squares.append(torch.square(start, out=room).sum())
        if new_part is not None:
            difference = torch.sub(_wide(new_part, exact), start, out=room).abs_()
            largest.append(difference.max())
            distances.append(difference.square_().sum())
    found = torch.stack([*squares, *distances, *largest]).tolist()  # one transfer from the device
    chunks, moved = len(squares), len(squares) + len(distances)
    return sum(found[:chunks]), sum(found[chunks:moved]), _largest(found[moved:])


def _split(flat: Tensor, size: int) -> Sequence[Tensor]:
    return (flat,) if len(flat) <= size else flat.split(size)


def _reals(flat: Tensor) -> Tensor:
    return torch.view_as_real(flat).view(-1) if flat.is_complex() else flat


def _wide(chunk: Tensor, exact: bool) -> Tensor:
    return chunk.cpu().double() if exact else chunk.float()  # on the CPU, for mps has no float64


def _largest(values: list[float]) -> float:
    return nan if any(value != value for value in values) else max(values, default=0.0)


def _lost_digits(square: float) -> bool:
    return square < SMALLEST_SQUARE or square == inf


def trained_digest(before: Snapshot, selection: Selection) -> str:
    """sha256 over name, dtype, shape and bytes, by name, of the parameters declared trainable, as they are now."""
    digest = hashlib.sha256()
    for name, entry in sorted(before.entries.items()):
        if entry.kind == "parameter" and entry.tensor not in selection:
            tensor = entry.tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

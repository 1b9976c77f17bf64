"""Measure how far each tensor moved: copy a model's tensors, and later compute norms of the differences."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from math import inf, nan, sqrt

import torch
from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.tensors import TensorEntry, flattened, same_bits_flat, tensor_entries

CPU_CHUNK = 1 << 17  # elements; they fit a core's cache, so that each copy is read from memory only once
ACCELERATOR_CHUNK = 1 << 18  # elements; on an accelerator many small kernel launches would cost more
ALWAYS_FLOAT64 = 1 << 12  # up to this many elements float64 costs no more than checking what float32 has lost
SMALLEST_SQUARE = 1e-30  # if a sum of squares is below this, float32 may have lost digits of its terms


@dataclass(frozen=True)
class Change:
    """How far one tensor moved.

    Attributes:
        initial_l2: Euclidean norm of the initial values.
        change_l2: Euclidean norm of the difference between the final and the initial values.
        change_max: largest absolute difference of an element.
        moved: whether any bit differs.
    """

    initial_l2: float
    change_l2: float
    change_max: float
    moved: bool

    @property
    def change_rel(self) -> float | None:
        """The norm of the change divided by the initial norm; None if the initial norm is 0."""
        return None if self.initial_l2 == 0 else self.change_l2 / self.initial_l2


@dataclass(frozen=True)
class Snapshot:
    """All tensors of a model at one moment, by name: their entries, and copies of their values."""

    entries: dict[str, TensorEntry]
    values: dict[str, Tensor]


def snapshot(model: nn.Module) -> Snapshot:
    """Copy every parameter and buffer of a model; takes as much memory as they do."""
    found = tensor_entries(model)
    return Snapshot(found, {name: entry.tensor.detach().clone() for name, entry in found.items()})


def add_new_tensors(before: Snapshot, model: nn.Module) -> Snapshot:
    """Return the snapshot, extended by copies of the tensors that the model has now and did not have then."""
    old_ids = {id(entry.tensor) for entry in before.entries.values()}
    new = {
        name: entry
        for name, entry in tensor_entries(model).items()
        if id(entry.tensor) not in old_ids and name not in before.entries
    }
    copies = {name: entry.tensor.detach().clone() for name, entry in new.items()}
    return Snapshot({**before.entries, **new}, {**before.values, **copies})


def measure_change(before: Tensor, after: Tensor | None) -> Change:
    """Return how far one tensor moved.

    If `after` is None (the tensor no longer exists) or has another shape or dtype, all norms are NaN and `moved` is True.
    A complex number counts as two real ones. The norms of integer, boolean and float64 tensors are computed in float64, the
    others in float32 and, if that may have overflowed or lost digits, once more in float64. Needs a few chunks of memory.
    """
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        return Change(nan, nan, nan, moved=True)
    after = after.to(before.device)
    old, new = flattened(before, like=before), flattened(after, like=before)
    moved = not same_bits_flat(old, new)
    in_float64 = not before.is_floating_point() or before.dtype is torch.float64 or len(old) <= ALWAYS_FLOAT64
    old, new = _as_real(old), _as_real(new)
    initial, distance, largest = _squared_norms(old, new if moved else None, in_float64)
    if not in_float64 and (_lost_digits(initial) or (moved and _lost_digits(distance))):
        initial, distance, largest = _squared_norms(old, new if moved else None, in_float64=True)
    return Change(sqrt(initial), sqrt(distance), largest, moved)


def _squared_norms(old: Tensor, new: Tensor | None, in_float64: bool) -> tuple[float, float, float]:
    """Return the squared norm of `old`, the squared norm of `new - old`, and the largest absolute difference.

    `new` is None if it equals `old`; then the difference is 0.
    """
    size = CPU_CHUNK if old.device.type == "cpu" else ACCELERATOR_CHUNK
    size //= 4 if in_float64 else 1  # converting to float64 makes copies
    squares, distances, largest = [], [], []
    # One scratch buffer is reused for all chunks, because allocating new memory costs more than the sums.
    scratch = _widen(old[:0], in_float64).new_empty(min(size, len(old)))
    new_chunks = repeat(None) if new is None else _split(new, size)
    for old_chunk, new_chunk in zip(_split(old, size), new_chunks, strict=False):
        wide, room = _widen(old_chunk, in_float64), scratch[: len(old_chunk)]
        # `sum` adds pairwise and keeps its digits; `dot` loses four digits if all elements are equal.
        squares.append(torch.square(wide, out=room).sum())
        if new_chunk is not None:
            difference = torch.sub(_widen(new_chunk, in_float64), wide, out=room).abs_()
            largest.append(difference.max())
            distances.append(difference.square_().sum())
    values = torch.stack([*squares, *distances, *largest]).tolist()  # one transfer from the device
    end_squares, end_distances = len(squares), len(squares) + len(distances)
    return sum(values[:end_squares]), sum(values[end_squares:end_distances]), _max_or_nan(values[end_distances:])


def _split(flat: Tensor, size: int) -> Sequence[Tensor]:
    """Split a flat tensor into chunks of `size` elements."""
    return (flat,) if len(flat) <= size else flat.split(size)


def _as_real(flat: Tensor) -> Tensor:
    """View a flat complex tensor as a flat real one of twice the length; return other tensors as they are."""
    return torch.view_as_real(flat).view(-1) if flat.is_complex() else flat


def _widen(chunk: Tensor, in_float64: bool) -> Tensor:
    """Convert a chunk to float64, or to float32; float64 on the CPU, because mps does not support it."""
    return chunk.cpu().double() if in_float64 else chunk.float()


def _max_or_nan(values: list[float]) -> float:
    """Return the largest value, NaN if any value is NaN, or 0 if there are none."""
    return nan if any(value != value for value in values) else max(values, default=0.0)


def _lost_digits(square: float) -> bool:
    """Whether a sum of squares that was computed in float32 overflowed or may have lost digits."""
    return square < SMALLEST_SQUARE or square == inf


def trained_digest(before: Snapshot, selection: Selection) -> str:
    """Return the sha256 of the current values of all parameters that are not declared frozen.

    It covers the name, dtype, shape and bytes of each one, in the order of names.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(before.entries.items()):
        if entry.kind == "parameter" and entry.tensor not in selection:
            tensor = entry.tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

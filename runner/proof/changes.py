"""Measure how far each tensor of a model moved: copy all tensors, and later compute norms of the differences."""

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
    """How far one tensor moved between two moments.

    The three numbers are NaN if the tensor's shape or dtype changed, or if the tensor no longer exists.

    Attributes:
        initial_l2: the Euclidean norm of the initial values.
        change_l2: the Euclidean norm of the difference between the final and the initial values.
        change_max: the largest absolute difference between the final and the initial value of an element.
        moved: whether any bit differs.
    """

    initial_l2: float
    change_l2: float
    change_max: float
    moved: bool

    @property
    def change_rel(self) -> float | None:
        """The relative change, `change_l2 / initial_l2`; None if `initial_l2` is 0."""
        return None if self.initial_l2 == 0 else self.change_l2 / self.initial_l2


@dataclass(frozen=True)
class Snapshot:
    """A copy of all parameters and buffers that a model had at one moment.

    Attributes:
        entries: {name: TensorEntry}; an entry refers to the model's own tensor, whose values may change later.
        values: {name: copy of the tensor at that moment}.
    """

    entries: dict[str, TensorEntry]
    values: dict[str, Tensor]


def snapshot(model: nn.Module) -> Snapshot:
    """Return copies of all parameters and buffers of a model; the copies take as much memory as the originals."""
    found = tensor_entries(model)
    return Snapshot(found, {name: entry.tensor.detach().clone() for name, entry in found.items()})


def add_new_tensors(before: Snapshot, model: nn.Module) -> Snapshot:
    """Return a snapshot with all tensors in `before`, and copies of the tensors that the model has gained since then."""
    old_ids = {id(entry.tensor) for entry in before.entries.values()}
    new = {
        name: entry
        for name, entry in tensor_entries(model).items()
        if id(entry.tensor) not in old_ids and name not in before.entries
    }
    copies = {name: entry.tensor.detach().clone() for name, entry in new.items()}
    return Snapshot({**before.entries, **new}, {**before.values, **copies})


def measure_change(before: Tensor, after: Tensor | None) -> Change:
    """Return how far a tensor moved from `before`, a copy of its initial value, to `after`, its final value.

    If `after` is None (the tensor no longer exists) or has another shape or dtype, all norms are NaN and `moved` is True.
    Norms of integer, boolean, complex, float64 and small tensors are computed in float64. Norms of other tensors are
    computed in float32, and again in float64 if float32 may have overflowed or lost digits. A complex number counts as two
    real ones. Little memory is needed, because the tensors are read in chunks.
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
    """Return (squared norm of `old`, squared norm of `new - old`, largest absolute element of `new - old`).

    `old` and `new` are one-dimensional. If `new` is None, it counts as equal to `old`, and the last two results are 0.
    `in_float64`: compute in float64 instead of float32.
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
    """Return a one-dimensional tensor in chunks of `size` elements, as views; the last chunk may be shorter."""
    return (flat,) if len(flat) <= size else flat.split(size)


def _as_real(flat: Tensor) -> Tensor:
    """Return a one-dimensional complex tensor as a view of real numbers, twice as long; other tensors as they are."""
    return torch.view_as_real(flat).view(-1) if flat.is_complex() else flat


def _widen(chunk: Tensor, in_float64: bool) -> Tensor:
    """Return a chunk as float64 on the CPU if `in_float64` is True, otherwise as float32 on the chunk's own device.

    The CPU is used for float64 because some devices (mps) do not support that dtype.
    """
    return chunk.cpu().double() if in_float64 else chunk.float()


def _max_or_nan(values: list[float]) -> float:
    """Return the largest value, NaN if any value is NaN, or 0 if there are none."""
    return nan if any(value != value for value in values) else max(values, default=0.0)


def _lost_digits(square: float) -> bool:
    """Return whether a sum of squares, computed in float32, has overflowed or is so small that digits may be lost."""
    return square < SMALLEST_SQUARE or square == inf


def trained_digest(before: Snapshot, selection: Selection) -> str:
    """Return a sha256, as hex digits, of the current values of all parameters that were not declared frozen.

    These are the parameters in `before.entries` that are not in `selection`. The hash covers the name, dtype, shape and
    bytes of each parameter, in the order of the names.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(before.entries.items()):
        if entry.kind == "parameter" and entry.tensor not in selection:
            tensor = entry.tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

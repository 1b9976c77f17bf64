"""Measure how far each tensor of a model moved: copy all tensors, and later compute norms of the differences."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from math import inf, nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.shards import local, sharding_of
from runner.tensors import (
    TensorEntry,
    copy_of,
    element_bits,
    flattened,
    has_arithmetic,
    has_values,
    quantiser_of,
    same_bits,
    tensor_entries,
)

CPU_CHUNK = 1 << 17  # elements; they fit a core's cache, so that each copy is read from memory only once
ACCELERATOR_CHUNK = 1 << 18  # elements; on an accelerator many small kernel launches would cost more
ALWAYS_FLOAT64 = 1 << 12  # up to this many elements float64 costs no more than checking what float32 has lost
SMALLEST_SQUARE = 1e-30  # if a sum of squares is below this, float32 may have lost digits of its terms


@dataclass(frozen=True)
class Change:
    """How far one tensor moved between two moments.

    All but `moved` and `initial_l2` are None if the tensor's shape or dtype changed. All norms are None if its dtype has no
    arithmetic, such as `float4_e2m1fn_x2` or a quantised one.

    Attributes:
        initial_l2: the Euclidean norm of the initial values.
        change_l2: the Euclidean norm of the difference between the final and the initial values.
        change_max: the largest absolute difference between the final and the initial value of an element.
        moved: whether any bit differs.
        moved_elements: how many elements differ by a bit.
    """

    initial_l2: float | None
    change_l2: float | None
    change_max: float | None
    moved: bool
    moved_elements: int | None

    @property
    def change_rel(self) -> float | None:
        """The relative change, `change_l2 / initial_l2`; None if `initial_l2` is 0, or if one of them is None."""
        return self.change_l2 / self.initial_l2 if self.initial_l2 and self.change_l2 is not None else None


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
    return Snapshot(found, {name: copy_of(entry.tensor) for name, entry in found.items()})


def add_new_tensors(before: Snapshot, model: nn.Module) -> Snapshot:
    """Return a snapshot with all tensors in `before`, and copies of the tensors that the model has gained since then."""
    old_ids = {id(entry.tensor) for entry in before.entries.values()}
    new = {
        name: entry
        for name, entry in tensor_entries(model).items()
        if id(entry.tensor) not in old_ids and name not in before.entries
    }
    copies = {name: copy_of(entry.tensor) for name, entry in new.items()}
    return Snapshot({**before.entries, **new}, {**before.values, **copies})


def measure_change(before: Tensor, after: Tensor) -> Change:
    """Return how far a tensor moved from `before`, a copy of its initial value, to `after`, its final value.

    Norms of integer, boolean, complex, float64 and small tensors are computed in float64. Norms of other tensors are
    computed in float32, and again in float64 if float32 may have overflowed or lost digits. A complex number counts as two
    real ones. Little memory is needed, because the tensors are read in chunks. Of DTensors, the parts that this process
    holds are measured.
    """
    is_sharded_alike = sharding_of(before) == sharding_of(after)
    before, after = local(before), local(after)
    if not has_values(before):
        return Change(None, None, None, moved=True, moved_elements=None)
    has_same_shape = after.shape == before.shape and after.dtype == before.dtype and after.layout == before.layout
    if not is_sharded_alike or not has_same_shape or not has_values(after):
        return Change(measure_change(before, before).initial_l2, None, None, moved=True, moved_elements=None)
    after = after.to(before.device)
    moved = not same_bits(before, after)
    old, new = flattened(before, like=before), flattened(after, like=before)
    if not has_arithmetic(before):
        return Change(None, None, None, moved=moved, moved_elements=_count_different(old, new) if moved else 0)
    in_float64 = not before.is_floating_point() or before.dtype is torch.float64 or len(old) <= ALWAYS_FLOAT64
    sums = _sums(old, new if moved else None, in_float64)
    if not in_float64 and (_lost_digits(sums.squares) or (moved and _lost_digits(sums.distances))):
        sums = _sums(old, new if moved else None, in_float64=True)
    initial_l2, change_l2 = sqrt(sums.squares), sqrt(sums.distances)
    return Change(initial_l2, change_l2, sums.largest, moved=moved, moved_elements=sums.different)


@dataclass(frozen=True)
class _Sums:
    """Sums over two one-dimensional tensors, `old` and `new`.

    Attributes:
        squares: the squared norm of `old`.
        distances: the squared norm of `new - old`.
        largest: the largest absolute element of `new - old`.
        different: how many elements differ by a bit.
    """

    squares: float
    distances: float
    largest: float
    different: int


def _sums(old: Tensor, new: Tensor | None, in_float64: bool) -> _Sums:
    """Return the sums over two one-dimensional tensors; if `new` is None, it counts as equal to `old`.

    `in_float64`: compute in float64 instead of float32.
    """
    size = CPU_CHUNK if old.device.type == "cpu" else ACCELERATOR_CHUNK
    size //= 4 if in_float64 else 1  # converting to float64 makes copies
    squares, distances, largest, different = [], [], [], []
    # One scratch buffer is reused for all chunks, because allocating new memory costs more than the sums.
    scratch = _widen(old[:0], in_float64).new_empty(min(size, len(old)) * (2 if old.is_complex() else 1))
    new_chunks = repeat(None) if new is None else _split(new, size)
    for old_chunk, new_chunk in zip(_split(old, size), new_chunks, strict=False):
        # `sum` adds pairwise and keeps its digits; `dot` loses four digits if all elements are equal.
        if new_chunk is None:
            real = torch.view_as_real(old_chunk).view(-1) if old_chunk.is_complex() else old_chunk
            room = scratch[: len(real)]
            is_wide = real.dtype == room.dtype
            squares.append((torch.square(real, out=room) if is_wide else room.copy_(real).square_()).sum())
        else:
            wide = _widen(old_chunk, in_float64)
            room = scratch[: len(wide)]
            squares.append(torch.square(wide, out=room).sum())
            different.append(_different(old_chunk, new_chunk))
            difference = torch.sub(_widen(new_chunk, in_float64), wide, out=room).abs_()
            largest.append(difference.max())
            distances.append(difference.square_().sum())
    # One transfer from the device. In float32, too, counts are exact: a chunk has few elements.
    values = iter(torch.stack([*squares, *distances, *largest, *(each.to(squares[0]) for each in different)]).tolist())
    square, distance = sum(islice(values, len(squares))), sum(islice(values, len(distances)))
    maximum = _max_or_nan(list(islice(values, len(largest))))
    return _Sums(square, distance, maximum, int(sum(values)))


def _different(old: Tensor, new: Tensor) -> Tensor:
    """Return how many elements of two one-dimensional tensors of the same dtype differ by a bit, as a tensor."""
    different = torch.bitwise_xor(element_bits(old), element_bits(new))  # twice as fast as `ne`, whose booleans sum slowly
    return (different.view(len(old), -1).any(1) if len(different) != len(old) else different).count_nonzero()


def _count_different(old: Tensor, new: Tensor) -> int:
    """Return how many elements of two one-dimensional tensors of the same dtype differ by a bit."""
    pairs = zip(_split(old, CPU_CHUNK), _split(new, CPU_CHUNK), strict=True)
    return sum(int(_different(*pair)) for pair in pairs)


def _split(flat: Tensor, size: int) -> Sequence[Tensor]:
    """Return a one-dimensional tensor in chunks of `size` elements, as views; the last chunk may be shorter."""
    return (flat,) if len(flat) <= size else flat.split(size)


def _widen(chunk: Tensor, in_float64: bool) -> Tensor:
    """Return a chunk as float64 on the CPU if `in_float64` is True, otherwise as float32 on the chunk's own device.

    The CPU is used for float64 because some devices (mps) do not support that dtype. A complex chunk is returned as real
    numbers, twice as many.
    """
    chunk = torch.view_as_real(chunk).view(-1) if chunk.is_complex() else chunk
    return chunk.cpu().double() if in_float64 else chunk.float()


def _max_or_nan(values: list[float]) -> float:
    """Return the largest value, NaN if any value is NaN, or 0 if there are none."""
    return nan if any(value != value for value in values) else max(values, default=0.0)


def _lost_digits(square: float) -> bool:
    """Return whether a sum of squares, computed in float32, has overflowed or is so small that digits may be lost."""
    return square < SMALLEST_SQUARE or square == inf


def digest_of(tensor: Tensor) -> str:
    """Return a sha256, as hex digits, of the dtype, shape and bits of a tensor, whatever its memory layout and device."""
    quantiser = quantiser_of(tensor) if tensor.is_quantized else ""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} {quantiser}".encode())
    _update(digest, tensor)
    return digest.hexdigest()


def _update(digest: Any, tensor: Tensor) -> None:
    """Add the bytes of a tensor to a digest, in the order of its elements; a sparse one counts as dense.

    Of a DTensor, the bytes that this process holds are added.
    """
    tensor = local(tensor)
    if not has_values(tensor):
        digest.update(b"no values")
        return
    tensor = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    tensor = tensor.contiguous()
    for chunk in _split(element_bits(flattened(tensor, like=tensor)), ACCELERATOR_CHUNK):
        copied = chunk.clone().cpu()  # numpy would forbid to resize the memory that it shares with a tensor of the model
        digest.update(copied.view(torch.uint8).numpy().data)


def trained_digest(before: Snapshot, selection: Selection, thawed: Collection[str] = ()) -> str:
    """Return a sha256, as hex digits, of the current values of all parameters that were not declared frozen.

    These are the parameters in `before.entries` that are not in `selection`, and those whose names are in `thawed`.
    The hash covers the name, dtype, shape and bytes of each parameter, in the order of the names.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(before.entries.items()):
        if entry.kind == "parameter" and (entry.tensor not in selection or name in thawed):
            digest.update(f"{name} {entry.tensor.dtype} {tuple(entry.tensor.shape)} ".encode())
            _update(digest, entry.tensor)
    return digest.hexdigest()

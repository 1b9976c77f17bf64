"""How far each tensor moved: a snapshot, and norms of the difference in one pass over both copies."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import torch
from torch import Tensor, nn

from runner.tensors import Entry, entries, same_bits

CHUNK = {"cpu": 1 << 16}  # elements that fit a core's cache, so that memory is read once; elsewhere launches cost more
CHUNK_ELSEWHERE = 1 << 24


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


@torch.no_grad()
def change(before: Tensor, after: Tensor | None) -> Change:
    """How far one tensor moved. One that is gone, or has another shape or type, has moved by NaN.

    Norms are computed in float32 or wider and summed over chunks in float64; integers, booleans and float64 in float64.
    Extra memory: one chunk.
    """
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        return Change(nan, nan, nan, moved=True)
    size = CHUNK.get(before.device.type, CHUNK_ELSEWHERE)
    pairs = zip(_flat(before, before).split(size), _flat(after, before).split(size), strict=True)
    parts, moved = [], False
    for old, new in pairs:
        old_wide = _wide(old)
        start = torch.linalg.vector_norm(old_wide)
        if same_bits(old, new):
            parts.append(torch.stack([start, start.new_zeros(()), start.new_zeros(()), start.new_zeros(())]))
            continue
        moved = True
        difference = _wide(new) - old_wide
        low, high = torch.aminmax(difference)
        parts.append(torch.stack([start, torch.linalg.vector_norm(difference), high, -low]))
    initial_l2, change_l2, change_max = 0.0, 0.0, 0.0
    for start_norm, norm, high_value, low_value in torch.stack(parts).tolist() if parts else ():
        initial_l2 += start_norm * start_norm
        change_l2 += norm * norm
        change_max = _largest(change_max, high_value, low_value)
    return Change(_root(initial_l2), _root(change_l2), change_max, moved)


def _flat(tensor: Tensor, like: Tensor) -> Tensor:
    # In the order of memory, so that a channels_last tensor is not copied.
    order = sorted(range(like.dim()), key=lambda dim: like.stride(dim), reverse=True)
    flat = tensor.detach().permute(order).reshape(-1)
    return torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat


def _wide(chunk: Tensor) -> Tensor:
    if chunk.is_floating_point() and chunk.dtype is not torch.float64:
        return chunk.float()
    return chunk.cpu().double()  # mps has no float64


def _largest(*values: float) -> float:
    return nan if any(value != value for value in values) else max(values)


def _root(square: float) -> float:
    return square if square != square or square == inf else sqrt(square)

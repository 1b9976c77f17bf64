"""The samples of a batch: in which rows of its tensors each one lies, and a digest by which it is recognised later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from itertools import zip_longest
from typing import Any

import numpy
import torch
from torch import Tensor

from runner.tensors import same_bits

Format = tuple[tuple[str, torch.dtype, torch.Size], ...]


def named_parts(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for each part of a batch that is no tuple, list or mapping.

    The name consists of the indices and keys that lead to the part, such as `0` or `pixels.left`; it is "" if the batch
    itself is such a part.
    """
    if isinstance(batch, MutableMapping):
        parts: Any = batch.items()
    elif isinstance(batch, (tuple, list)):
        parts = enumerate(batch)
    else:
        yield name, batch
        return
    for key, part in parts:
        yield from named_parts(part, f"{name}.{key}" if name else str(key))


def why_no_samples(batch: Any) -> str:
    """Return why a batch cannot be divided into samples, or "" if each of its parts is a tensor with one row per sample."""
    parts = list(named_parts(batch))
    for name, part in parts:
        if not isinstance(part, Tensor) or part.is_nested or part.layout is not torch.strided or not part.dim():
            return f"{part_named(name)} is not a tensor with one row per sample"
        if len(part) != len(parts[0][1]):
            return f"{part_named(name)} has {len(part)} rows, and {part_named(parts[0][0])} has {len(parts[0][1])}"
    return "" if parts and len(parts[0][1]) else "it has no rows"


def part_named(name: str) -> str:
    """Return the words for a part of a batch in a message: `its part pixels.left`, or `it` for the batch itself."""
    return f"its part {name}" if name else "it"


def batch_format(batch: Any) -> Format:
    """Return the name, dtype and shape of each tensor of a batch whose parts are all tensors."""
    return tuple((name, part.dtype, part.shape) for name, part in named_parts(batch))


def sample_keys(batch: Any) -> list[bytes]:
    """Return a digest of each sample of a batch, over the name, dtype, shape and bits of its row in every tensor.

    Two samples have the same digest only if all of this is equal, in whatever batches and at whatever index they are. The
    batch must have samples (see `why_no_samples`).
    """
    names = repr([(name, dtype, shape[1:]) for name, dtype, shape in batch_format(batch)]).encode()
    tensors = [part for _, part in named_parts(batch)]
    digests = [hashlib.sha256(names) for _ in range(len(tensors[0]))]
    for tensor in tensors:
        for digest, row in zip(digests, row_bytes(tensor), strict=True):
            digest.update(row)
    return [digest.digest()[:16] for digest in digests]


def first_difference(batch: Any, other: Any) -> str | None:
    """Return the name of the first part in which two batches differ (in nesting or in any bit), or None if they do not.

    The first batch must have samples (see `why_no_samples`).
    """
    for one, another in zip_longest(named_parts(batch), named_parts(other)):
        if one is None or another is None or one[0] != another[0]:
            return str((one or another)[0])
        (name, tensor), (_, other_tensor) = one, another
        if not isinstance(other_tensor, Tensor) or not same_bits(tensor, other_tensor):
            return name
    return None


def row_bytes(rows: Tensor) -> numpy.ndarray:
    """Return the bytes of the rows of a tensor (N, ...) as a uint8 array (N, bytes of one row)."""
    flat = rows.detach().resolve_conj().resolve_neg().cpu().contiguous().view(len(rows), -1)
    return flat.view(torch.uint8).numpy() if flat.numel() else numpy.empty((len(rows), 0), numpy.uint8)

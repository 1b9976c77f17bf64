"""Write a checkpoint in which some tensors are as they were in another one, and all others as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from runner.errors import ConfigError, listed
from runner.proof.checkpoints.names import aliases, frozen_names, paired
from runner.proof.checkpoints.stored import SAFETENSORS_DTYPES, StoredCheckpoint, StoredTensor, open_pair

BLOCK = 4 << 20  # bytes of a tensor that are copied at a time
NAME_OF_DTYPE = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
HEADER_UNIT = 8  # bytes, of which the header of a safetensors file has a multiple


@dataclass(frozen=True)
class Restoration:
    """Which tensors a checkpoint gets from where.

    Attributes:
        tensors: {name in the checkpoint to write: the tensor, in a file of one of the two}.
        restored: the names of those that are as they were before.
        metadata: the texts in the header of a safetensors file.
        sources: the checkpoints that are read.
    """

    tensors: Mapping[str, StoredTensor]
    restored: Sequence[str]
    metadata: Mapping[str, str]
    sources: tuple[StoredCheckpoint, StoredCheckpoint]

    def refuse_if_changed(self) -> None:
        """Raise ConfigError if one of the files that are read has changed meanwhile."""
        for source in self.sources:
            source.refuse_if_changed()


def restoration(
    before: str | Path, after: str | Path, patterns: Sequence[str], keep: Sequence[str] = (), *, key: str | None = None
) -> Restoration:
    """Return the tensors of `after`, of which those that the patterns match are the ones in `before`.

    The arguments are those of `diff`. Raises ConfigError for wrong patterns and files, and if a tensor cannot be restored:
    it is in one of the checkpoints only, or has another shape or dtype there.
    """
    old, new = open_pair(before, after, key)
    pairs = paired(old, new)
    names = frozen_names(old, patterns, keep)
    if missing := [name for name in old.tensors if name in names and name not in pairs.name_after]:
        raise ConfigError(f"AFTER has no {listed(missing, most=3)}; restore what both checkpoints have")
    old_of = {pairs.name_after[name]: tensor for name, tensor in old.tensors.items() if name in names}
    other_names = aliases(new)  # a tied tensor is restored under all its names
    old_of |= {alias: tensor for name, tensor in old_of.items() for alias in other_names[name] if alias not in old_of}
    for name, tensor in old_of.items():
        other = new.tensors[name]
        if (tensor.shape, tensor.stored_as) != (other.shape, other.stored_as):
            raise ConfigError(
                f"{name} is {other.stored_as} {list(other.shape)} in AFTER and {tensor.stored_as} {list(tensor.shape)} in "
                "BEFORE; restore what has the same dtype and shape"
            )
    tensors = {**new.tensors, **old_of}
    if unwritable := [name for name, each in tensors.items() if not _is_writable(each)]:
        raise ConfigError(f"{listed(unwritable, most=2)}: a safetensors file has no {tensors[unwritable[0]].stored_as}")
    return Restoration(tensors, sorted(old_of), {"format": "pt", **new.metadata}, (old, new))


def _is_writable(tensor: StoredTensor) -> bool:
    """Return whether a safetensors file has the dtype of a tensor, and torch too."""
    return tensor.dtype in NAME_OF_DTYPE and tensor.stored_as == str(tensor.dtype).removeprefix("torch.")


def write_restoration(found: Restoration, opened: BinaryIO) -> None:
    """Write the tensors as a safetensors file, in blocks. Raises ConfigError if a file has become too short meanwhile.

    Source: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, object] = {"__metadata__": dict(found.metadata)}
    end = 0
    for name, tensor in found.tensors.items():
        begin, end = end, end + tensor.numel * tensor.dtype.itemsize
        header[name] = {"dtype": NAME_OF_DTYPE[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_UNIT)
    opened.write(len(text).to_bytes(8, "little") + text)
    for tensor in found.tensors.values():
        size = max(1, BLOCK // tensor.dtype.itemsize)
        memory = torch.empty(size * tensor.dtype.itemsize, dtype=torch.uint8)
        for start in range(0, tensor.numel, size):
            block = tensor.read(start, min(size, tensor.numel - start), memory)
            opened.write(block.contiguous().view(torch.uint8).numpy().data)

"""The stored outputs of frozen first layers for batches of one form, which all runs of a sweep share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from runner.methods.prefix.bypass import Recording
from runner.methods.prefix.output_cache import restore_dim_order
from runner.methods.prefix.samples import row_bytes
from runner.sharing.bits import digest_of_bits
from runner.sharing.folder import SharedFolder, digest_of
from runner.sharing.rows import KEY_BYTES, SharedRows
from runner.tensors import tensors_in

FOLDER = "prefix"  # in the shared folder


@dataclass
class Store:
    """The stored outputs of the last frozen module for batches of one form.

    Attributes:
        recording: the placeholders with which a step skips the frozen layers.
        rows: the files of the outputs.
    """

    recording: Recording
    rows: SharedRows

    @classmethod
    def of(cls, shared: SharedFolder, key: Sequence[str], recording: Recording) -> Store:
        """Return the store under a key, texts that differ wherever the outputs may.

        `recording`: what `verified_recording` returned.
        """
        last = recording.last_tensor
        name = digest_of(*key, repr((last.dtype, last.shape, list(recording.dim_order))))
        length = prod(last.shape[1:]) * last.element_size()
        return cls(recording, SharedRows(shared.path / FOLDER / name, length, shared.limit))

    @property
    def form(self) -> tuple[torch.Size, torch.dtype]:
        """The shape and dtype of the output for a batch."""
        return self.recording.last_tensor.shape, self.recording.last_tensor.dtype

    def keys(self, batch: Any) -> list[bytes]:
        """Return a key for each place in a batch of this form; batches with the same keys have the same samples.

        The output for a sample may depend on the others of its batch, for some batches alone.
        """
        tensors = tensors_in(batch)
        whole = b"".join(map(digest_of_bits, tensors))
        return [bytes.fromhex(digest_of(whole, str(place)))[:KEY_BYTES] for place in range(len(tensors[0]))]

    def load(self, keys: Sequence[bytes], batch: Any) -> Callable[[], Tensor]:
        """Return a function that returns the outputs for the samples of a batch, as a new tensor at each call.

        Raises DamagedError or OSError if they cannot be read.
        """
        shape, dtype = self.form
        rows, device = self.rows.get(keys), tensors_in(batch)[0].device

        def loaded() -> Tensor:
            values = torch.from_numpy(rows.copy()).view(-1).view(dtype)
            in_memory = values.view([shape[dim] for dim in self.recording.dim_order])
            return restore_dim_order(in_memory.to(device), self.recording.dim_order)

        return loaded

    def save(self, keys: Sequence[bytes], output: Tensor) -> None:
        """Store the outputs for samples. Raises FullError or OSError if they cannot be stored."""
        self.rows.add(keys, row_bytes(output.permute(*self.recording.dim_order)))

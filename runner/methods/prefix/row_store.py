"""A store of tensors with keys: in memory up to a limit, and beyond it in a memory-mapped file."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import numpy
import torch
from torch import Tensor

from runner.methods.prefix.samples import row_bytes


class DamagedError(Exception):
    """The bytes in the file of stored rows are not those that were written to it."""


@dataclass
class MemoryBudget:
    """How many bytes the stores that share this budget may still take in memory."""

    left: int


class RowStore:
    """Stores tensors of one shape and dtype, called rows, each under a key, and returns them with the same bits.

    Rows stay in memory, on the device they came on, as long as `budget` allows. Further rows go to a file, each with a
    checksum. The file is in a new temporary folder inside `folder` (None: inside the system's folder for temporary files).
    `close` removes the file and the temporary folder.
    """

    def __init__(self, budget: MemoryBudget, folder: str | None = None) -> None:
        self.budget, self.folder = budget, folder
        self.positions: dict[Hashable, int] = {}  # key of a row -> index in memory, or -1 - index in the file
        self.in_memory: Tensor | None = None  # (indices, ...)
        self.used = 0  # how many rows of `in_memory` are in use
        self.row_bytes = 0
        self._temporary_folder: tempfile.TemporaryDirectory[str] | None = None
        self._file: IO[bytes] | None = None
        self._map: numpy.memmap | None = None  # (rows in the file, bytes of a row)
        self._checksums: list[int] = []

    def __contains__(self, key: Hashable) -> bool:
        return key in self.positions

    def put(self, keys: Sequence[Hashable], rows: Tensor) -> None:
        """Store a copy of each row: `rows[i]` under `keys[i]`. `rows` has shape (N, ...), and the N keys must be new.

        Raises OSError if the file cannot be written. The rows that fit into memory are then stored, and the others are not.
        """
        rows = rows.detach()
        if self.in_memory is None:
            self.in_memory, self.row_bytes = rows.new_empty((0, *rows.shape[1:])), rows[:1].numel() * rows.element_size()
        size, used = len(self.in_memory), self.used
        possible = size + self.budget.left // max(self.row_bytes, 1)
        fitting = min(possible - used, len(rows))
        if fitting:
            if used + fitting > size:  # double the size, so that each row is copied only a few times
                grown = self.in_memory.new_empty((min(max(2 * used, used + fitting), possible), *self.in_memory.shape[1:]))
                grown[:used] = self.in_memory[:used]
                self.budget.left -= (len(grown) - size) * self.row_bytes
                self.in_memory = grown
            self.in_memory[used : used + fitting] = rows[:fitting]
            self.positions.update(zip(keys[:fitting], range(used, used + fitting), strict=True))
            self.used += fitting
        if fitting < len(rows):
            self._write(keys[fitting:], rows[fitting:])

    def _write(self, keys: Sequence[Hashable], rows: Tensor) -> None:
        """Append the rows to the file, under these keys, and keep a checksum of each row.

        Raises OSError if the file cannot be written.
        """
        data = row_bytes(rows)
        if self._file is None:
            self._temporary_folder = tempfile.TemporaryDirectory(prefix="freeze-runner-", dir=self.folder)
            # Written as a file and read through the map: on a full disk, writing through the map would kill the process.
            path = os.path.join(self._temporary_folder.name, "prefix")
            self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._file.seek(len(self._checksums) * self.row_bytes)
        unwritten = memoryview(data.tobytes())
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]
        first = len(self._checksums)
        self._checksums += [zlib.crc32(row) for row in data]
        self.positions.update(zip(keys, (-1 - index for index in range(first, first + len(rows))), strict=True))

    def get(self, keys: Sequence[Hashable]) -> Tensor:
        """Return a new tensor (N, ...) with the rows stored under these N keys, in the order of the keys.

        Raises KeyError if a key is not in the store. Raises DamagedError if the file is too short or a row does not match
        its checksum.
        """
        assert self.in_memory is not None
        positions = [self.positions[key] for key in keys]
        if min(positions) >= 0:
            return self.in_memory.index_select(0, torch.tensor(positions, device=self.in_memory.device))
        rows = self.in_memory.new_empty((len(positions), *self.in_memory.shape[1:]))
        for index, position in enumerate(positions):
            rows[index] = self.in_memory[position] if position >= 0 else self._read(-1 - position)
        return rows

    def _read(self, index: int) -> Tensor:
        """Return row `index` of the file (counted from 0).

        Raises DamagedError if the file is too short or the row does not match its checksum.
        """
        assert self.in_memory is not None
        assert self._file is not None
        count = len(self._checksums)
        if not self.row_bytes:  # an empty file cannot be mapped
            return self.in_memory.new_empty(self.in_memory.shape[1:])
        if os.fstat(self._file.fileno()).st_size < count * self.row_bytes:  # reading past its end would kill the process
            raise DamagedError("it is shorter than what was written")
        if self._map is None or len(self._map) < count:
            self._map = numpy.memmap(self._file, numpy.uint8, "r", shape=(count, self.row_bytes))
        data = self._map[index].copy()
        if zlib.crc32(data) != self._checksums[index]:
            raise DamagedError("a checksum does not match")
        row = torch.from_numpy(numpy.asarray(data)).view(self.in_memory.dtype).view(self.in_memory.shape[1:])
        return row.to(self.in_memory.device)

    def forget_file(self) -> None:
        """Remove the keys of all rows that are in the file from the store. Rows in memory stay."""
        self.positions = {key: position for key, position in self.positions.items() if position >= 0}

    def close(self) -> None:
        """Remove all rows from the store, and delete the file and its folder."""
        if self.in_memory is not None:
            self.budget.left += len(self.in_memory) * self.row_bytes
        self.positions, self.in_memory, self.used = {}, None, 0
        self._map = None  # unmaps the file
        if self._file is not None:
            self._file.close()
        if self._temporary_folder is not None:
            with suppress(OSError):
                self._temporary_folder.cleanup()
        self._file = self._temporary_folder = None

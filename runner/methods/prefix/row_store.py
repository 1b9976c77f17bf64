"""A memory of rows by number: up to a bound in the machine's memory, the rest in a file that is mapped into it."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import numpy
import torch
from torch import Tensor


class DamagedError(Exception):
    """What is read from the file is not what was written to it."""


class RowStore:
    """Keeps rows of one shape and dtype, whatever bits they hold.

    `limit`: bytes that rows may take in memory, on the device where they were made; what comes behind goes to a file in
    a temporary folder below `folder` (the system's own where that is None), which both go when the memory is closed. Each
    row of the file has a checksum. What cannot be written is forgotten, and `put` raises the OSError.
    """

    def __init__(self, limit: int, folder: str | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.slots: dict[int, int] = {}  # of each row's number, its place; those in memory come first
        self.near: Tensor | None = None
        self.room = 0  # how many rows may lie in memory
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._file: IO[bytes] | None = None
        self._map: numpy.memmap | None = None  # (rows, bytes of a row)
        self._sums: list[int] = []

    def __contains__(self, number: int) -> bool:
        return number in self.slots

    def put(self, numbers: Sequence[int], rows: Tensor) -> None:
        """Keep copies of rows (N, ...) under N numbers that are not there yet; raises OSError where the disk does."""
        rows = rows.detach()
        if self.near is None:
            self.near, self.size = rows.new_empty((0, *rows.shape[1:])), rows[:1].numel() * rows.element_size()
            self.room = self.limit // max(self.size, 1)
        used = len(self.slots)
        near = max(0, min(self.room - used, len(rows)))
        if near:
            if used + near > len(self.near):  # grown by doubling, so that each row is copied but a few times
                grown = self.near.new_empty((min(max(2 * used, used + near), self.room), *self.near.shape[1:]))
                grown[:used] = self.near[:used]
                self.near = grown
            self.near[used : used + near] = rows[:near]
            self.slots.update(zip(numbers[:near], range(used, used + near), strict=True))
        if near < len(rows):
            self._write(numbers[near:], rows[near:])

    def _write(self, numbers: Sequence[int], rows: Tensor) -> None:
        written = _bytes(rows)
        if self._file is None:
            self._home = tempfile.TemporaryDirectory(prefix="freeze-runner-", dir=self.folder)
            # Written as a file and only read through the map: a full disk is then an error, and not a signal that kills.
            self._file = open(os.path.join(self._home.name, "prefix"), "w+b", buffering=0)  # noqa: SIM115
        self._file.seek(len(self._sums) * self.size)
        left = memoryview(written.tobytes())
        while left:
            left = left[self._file.write(left) :]
        first = self.room + len(self._sums)
        self._sums += [zlib.crc32(row) for row in written]
        self.slots.update(zip(numbers, range(first, first + len(rows)), strict=True))

    def get(self, numbers: Sequence[int]) -> Tensor:
        """A new tensor (N, ...) of the rows under these numbers; raises DamagedError where the file has other bits."""
        assert self.near is not None
        slots = [self.slots[number] for number in numbers]
        if max(slots) < self.room:
            return self.near.index_select(0, torch.tensor(slots, device=self.near.device))
        rows = self.near.new_empty((len(slots), *self.near.shape[1:]))
        for place, slot in enumerate(slots):
            rows[place] = self.near[slot] if slot < self.room else self._read(slot - self.room)
        return rows

    def _read(self, place: int) -> Tensor:
        assert self.near is not None
        assert self._file is not None
        rows = len(self._sums)
        if not self.size:  # an empty file cannot be mapped
            return self.near.new_empty(self.near.shape[1:])
        if os.fstat(self._file.fileno()).st_size < rows * self.size:  # a map of what is no longer there would kill
            raise DamagedError("it is shorter than what was written")
        if self._map is None or len(self._map) < rows:
            self._map = numpy.memmap(self._file, numpy.uint8, "r", shape=(rows, self.size))
        found = self._map[place].copy()
        if zlib.crc32(found) != self._sums[place]:
            raise DamagedError("it holds other bits than were written")
        return torch.from_numpy(numpy.asarray(found)).view(self.near.dtype).view(self.near.shape[1:]).to(self.near.device)

    def forget_file(self) -> None:
        """Forget every row that is in the file."""
        self.slots = {number: slot for number, slot in self.slots.items() if slot < self.room}

    def close(self) -> None:
        """Forget all, and remove the file and its folder."""
        self.slots, self.near = {}, None
        self._map = None  # which ends the mapping
        if self._file is not None:
            self._file.close()
        if self._home is not None:
            with suppress(OSError):
                self._home.cleanup()
        self._file = self._home = None


def _bytes(rows: Tensor) -> numpy.ndarray:
    """Rows as (N, bytes)."""
    flat = rows.cpu().contiguous().view(len(rows), -1)
    return flat.view(torch.uint8).numpy() if flat.numel() else numpy.empty((len(rows), 0), numpy.uint8)

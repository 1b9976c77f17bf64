"""Rows of bytes under keys in a file that several processes append to, each row once, and read through a memory map."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy
from filelock import FileLock, Timeout

KEY_BYTES = 16
RECORD_BYTES = KEY_BYTES + 8  # a key, the checksum of its row, and the checksum of both
LONGEST_WAIT = 60.0  # seconds, for another process that stores rows
DATA, INDEX, LOCK = "rows", "index", ".lock"


class DamagedError(Exception):
    """The bytes in the file are not those that were written."""


class FullError(Exception):
    """The rows would take more bytes than they may."""


class SharedRows:
    """Rows of one length, each stored under a key of 16 bytes with a checksum.

    A process that is killed while it writes leaves no row that others read: a row counts once its record is in the index,
    which is written after the row. Where two processes store a row under the same key, the first one stays.

    `folder`: its files `rows` and `index` are created when the first row is stored. `row_bytes`: the length of a row.
    `limit`: how many bytes the rows may take in all folders beside this one and in this one.
    """

    def __init__(self, folder: Path, row_bytes: int, limit: int) -> None:
        self.folder, self.row_bytes, self.limit = folder, row_bytes, limit
        self.positions: dict[bytes, int] = {}
        self.checksums: list[int] = []
        self.damaged: set[bytes] = set()
        self.map: numpy.memmap | None = None

    def has(self, keys: Sequence[bytes]) -> bool:
        """Return whether all keys have a row; reads the records that other processes have added where one has none."""
        if not all(key in self.positions for key in keys):
            try:
                self._read_index()
            except TimeoutError:  # of the run, which may end any line
                raise
            except OSError:
                return False
        return all(key in self.positions and key not in self.damaged for key in keys)

    def get(self, keys: Sequence[bytes]) -> numpy.ndarray:
        """Return a copy of the rows under these keys, as a uint8 array (keys, row_bytes).

        Raises KeyError for a key without a row, OSError if the file cannot be read, and DamagedError if it is too short or
        a row does not match its checksum; that row is then no longer there for this process.
        """
        positions = [self.positions[key] for key in keys]
        if not self.row_bytes:
            return numpy.empty((len(keys), 0), numpy.uint8)
        path, count = self.folder / DATA, len(self.checksums)
        if path.stat().st_size < (max(positions) + 1) * self.row_bytes:  # reading past its end would kill the process
            self.damaged.update(keys)
            raise DamagedError("it is shorter than what was written")
        if self.map is None or len(self.map) <= max(positions):
            count = min(count, path.stat().st_size // self.row_bytes)
            self.map = numpy.memmap(path, numpy.uint8, "r", shape=(count, self.row_bytes))
        rows: numpy.ndarray = numpy.asarray(self.map[positions])
        wrong = [key for key, at, row in zip(keys, positions, rows, strict=True) if zlib.crc32(row) != self.checksums[at]]
        if wrong:
            self.damaged.update(wrong)
            raise DamagedError("a checksum does not match")
        return rows

    def add(self, keys: Sequence[bytes], rows: numpy.ndarray) -> None:
        """Store those of the rows, an array (keys, row_bytes) of uint8, whose keys have none.

        Raises FullError if they would take more than the limit, and OSError if they cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder.parent / LOCK):
            self._read_index()
            known = self.positions.keys() - self.damaged
            new = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
            used = sum(path.stat().st_size for path in self.folder.parent.glob(f"*/{DATA}"))
            if new and used + len(new) * self.row_bytes > self.limit:
                raise FullError(f"sweep.share_mb={self.limit / 2**20:.3g} is reached")
            first = len(self.checksums)
            checksums = [zlib.crc32(row) for row in new.values()]
            _write_at(self.folder / DATA, first * self.row_bytes, b"".join(row.tobytes() for row in new.values()))
            records = b"".join(map(_record, new, checksums))
            _write_at(self.folder / INDEX, first * RECORD_BYTES, records)
        self.damaged -= set(new)
        self._take(list(new), checksums)

    def _read_index(self) -> None:
        """Read the records that were added since the last time, up to the first incomplete or damaged one."""
        known = len(self.checksums)
        try:
            with open(self.folder / INDEX, "rb") as file:
                file.seek(known * RECORD_BYTES)
                data = file.read()
        except FileNotFoundError:
            return
        for start in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
            record = data[start : start + RECORD_BYTES]
            key, checksum = record[:KEY_BYTES], int.from_bytes(record[KEY_BYTES : KEY_BYTES + 4], "little")
            if record != _record(key, checksum):
                return
            self._take([key], [checksum])

    def _take(self, keys: Sequence[bytes], checksums: Sequence[int]) -> None:
        """Note that the next rows of the file have these keys and checksums."""
        first = len(self.checksums)
        self.positions.update(zip(keys, range(first, first + len(keys)), strict=True))
        self.checksums += checksums


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep the lock of a file inside the block. Raises OSError if another process has kept it for LONGEST_WAIT."""
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=LONGEST_WAIT)
    except Timeout as error:  # a TimeoutError would be taken for that of the run
        raise OSError(f"another process has locked {path.name} for {LONGEST_WAIT:g} seconds") from error
    try:
        yield
    finally:
        lock.release()


def _record(key: bytes, checksum: int) -> bytes:
    """Return the record of a row in the index: its key, its checksum, and the checksum of both."""
    content = key + checksum.to_bytes(4, "little")
    return content + zlib.crc32(content).to_bytes(4, "little")


def _write_at(path: Path, position: int, data: bytes) -> None:
    """Write bytes to a file from a position on, and change no others: another process may have mapped them.

    Raises OSError if they cannot be written.
    """
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.seek(position)
        unwritten = memoryview(data)
        while unwritten:
            unwritten = unwritten[file.write(unwritten) :]

"""The folder in which the runs of a sweep keep what they compute once, whichever process carries them out."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

T = TypeVar("T")
LONGEST_WAIT = 60.0  # seconds, for another process that computes the same value


@dataclass(frozen=True)
class SharedFolder:
    """A folder with values that the processes of a sweep compute once, each in a file with a checksum.

    A value that cannot be read, because its file is missing or damaged, is computed again. If no file can be written there,
    each process computes the value itself.

    Attributes:
        path: the folder; it is created when a value is first written.
        limit: how many bytes the stored outputs of frozen layers may take in all.
        runs: how many runs of the sweep, with the one that has this object, begin with the same model and data.
    """

    path: Path
    limit: int = 0
    runs: int = 1

    def once(self, what: str, key: str, compute: Callable[[], T], *, keep: Callable[[T], bool] = lambda value: True) -> T:
        """Return the value of `compute()`, called by one process of the sweep for each `what` and `key`.

        The value must consist of what JSON knows, and is returned as JSON gives it back: tuples are lists, and keys are
        texts. `what`: the name of a subfolder. What `compute` raises is passed on, and nothing is stored then, nor if
        `keep(value)` is False.
        """
        file = self.path / what / f"{digest_of(key)}.json"
        with going_on_after(OSError, ValueError):
            value: T = _read(file)
            return value
        with self._locked(file):
            with going_on_after(OSError, ValueError):  # another process may have written it meanwhile
                value = _read(file)
                return value
            content = json.dumps(value := compute())
            if keep(value):
                with going_on_after(OSError):
                    _write(file, content)
        value = json.loads(content)
        return value

    @contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        """Keep the lock of a file inside the block; without it after LONGEST_WAIT, or where files cannot be locked."""
        lock = FileLock(file.with_suffix(".lock"), fallback_to_soft=False)
        with going_on_after(OSError, NotImplementedError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=LONGEST_WAIT)
        try:
            yield
        finally:
            lock.release()


@dataclass(frozen=True)
class Sharing:
    """What a run shares with the other runs of a sweep, and what tells apart those of them that compute other bits.

    Attributes:
        folder: the folder of shared values; None if nothing is shared.
        settings: the settings of the run and of its process on which bits depend, as text.
    """

    folder: SharedFolder | None = None
    settings: str = ""


@contextmanager
def going_on_after(*errors: type[Exception]) -> Iterator[None]:
    """Suppress errors of files and locks in the block, but not the TimeoutError of the run, which may end any line."""
    try:
        yield
    except Timeout:  # of a lock; it is a TimeoutError too
        pass
    except TimeoutError:
        raise
    except errors:
        pass


def digest_of(*texts: str | bytes) -> str:
    """Return 32 hex digits that are equal only for equal texts, in the same order."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode() if isinstance(text, str) else text
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _read(file: Path) -> Any:
    """Return the value in a file that `_write` wrote. Raises OSError or ValueError if the file is missing or damaged."""
    checksum, _, content = file.read_text(encoding="utf-8").partition("\n")
    if checksum != _checksum(content):
        raise ValueError("the checksum does not match")
    return json.loads(content)


def _write(file: Path, content: str) -> None:
    """Write a file with a JSON text and its checksum, completely or not at all. Raises OSError if it cannot be written."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        temporary.write_text(f"{_checksum(content)}\n{content}", encoding="utf-8")
        os.replace(temporary, file)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _checksum(content: str) -> str:
    """Return the CRC-32 of a text, as hex digits."""
    return f"{zlib.crc32(content.encode()):08x}"

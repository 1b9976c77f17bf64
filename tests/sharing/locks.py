"""A lock that another process keeps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEEP = """
import sys
from filelock import FileLock

with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def locked_elsewhere(path: Path) -> Iterator[None]:
    """Let another process keep the lock of a file inside the block."""
    command = [sys.executable, "-c", KEEP, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield
        process.stdin.close()

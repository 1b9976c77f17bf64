"""What the benchmarks share: clocks, child processes, and the line in which each says its result."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = [sys.executable, str(Path(__file__).with_name("by_hand.py"))]
RUNNER = [sys.executable, "-m", "runner"]


@dataclass(frozen=True)
class Time:
    """Seconds: `cpu` is user and system time over all threads, `wall` is the clock's."""

    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Time) -> Time:
        return Time(self.cpu - other.cpu, self.wall - other.wall)


def now() -> Time:
    """This process's clocks."""
    return Time(process_time(), perf_counter())


def measured(command: Sequence[str]) -> tuple[Time, int]:
    """Run a command from the project's root; what it took, its own children included, and its peak resident bytes.

    The peak is that of the largest single process, and holds only while this one is small: a child starts as its copy.
    Raises RuntimeError with what the command wrote where its exit code is not 0.
    """
    with tempfile.TemporaryFile() as said:
        start = perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        wall = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}\n{said.read().decode()[-3000:]}")
    return Time(used.ru_utime + used.ru_stime, wall), used.ru_maxrss * 1024


def child(command: Sequence[str]) -> Time:
    """Run a command from the project's root and return what it took, as `measured` does."""
    return measured(command)[0]


def say(what: str, ratios: Sequence[float], target: float | None = None, note: str = "") -> None:
    """Print a line: the median of the ratios, their range, and the target where there is one."""
    middle = median(ratios)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}"
    judged = "" if target is None else f"  target <= {target:.3g}  {'met' if middle <= target else 'MISSED'}"
    print(f"{what:<46} {middle:6.3f}  ({spread}){judged}{'  ' + note if note else ''}", flush=True)

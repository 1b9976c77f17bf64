"""Shared by the benchmarks: clocks, child processes, and printing a result."""

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
    """Seconds: `cpu` is user and system time of all threads, `wall` is elapsed time."""

    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Time) -> Time:
        return Time(self.cpu - other.cpu, self.wall - other.wall)


def read_clocks() -> Time:
    """The CPU time of this process, and the wall clock."""
    return Time(process_time(), perf_counter())


def time_and_peak(command: Sequence[str]) -> tuple[Time, int]:
    """Run a command from the project's root; returns its time, with that of its children, and its peak resident bytes.

    The peak is that of its largest process. It is only right if this process is small, because a child starts as a copy.
    Raises RuntimeError with the command's output if its exit code is not 0.
    """
    with tempfile.TemporaryFile() as output:
        start = perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}\n{output.read().decode()[-3000:]}")
    return Time(usage.ru_utime + usage.ru_stime, wall), usage.ru_maxrss * 1024


def time_command(command: Sequence[str]) -> Time:
    """Run a command from the project's root and return its time; raises as `time_and_peak` does."""
    return time_and_peak(command)[0]


def print_ratios(label: str, ratios: Sequence[float], target: float | None = None, note: str = "") -> None:
    """Print a line: the median of the ratios, their range, whether the target is met, and a note."""
    middle = median(ratios)
    value_range = f"{min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}"
    result = "" if target is None else f"  target <= {target:.3g}  {'met' if middle <= target else 'MISSED'}"
    print(f"{label:<46} {middle:6.3f}  ({value_range}){result}{'  ' + note if note else ''}", flush=True)

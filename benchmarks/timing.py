"""Shared by the benchmarks: clocks, child processes, and printing a result."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = [sys.executable, str(Path(__file__).with_name("by_hand.py"))]
PR_SET_CHILD_SUBREAPER = 36  # in linux/prctl.h
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
    On Linux, processes that it started and that end after it count too; their time is not in the CPU time that the system
    gives for it. Raises RuntimeError with the command's output if its exit code is not 0.
    """
    _adopt_orphans()
    with tempfile.TemporaryFile() as output:
        start = perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        _, status, usage = os.wait4(process.pid, 0)
        wall = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        usages = [usage, *_usages_of_orphans(process.pid)]
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}\n{output.read().decode()[-3000:]}")
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return Time(cpu, wall), max(usage.ru_maxrss for usage in usages) * 1024


def _adopt_orphans() -> None:
    """Make this process the parent of all descendants whose own parent has ended (only on Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _usages_of_orphans(group: int) -> Iterator[resource.struct_rusage]:
    """Wait for all adopted processes of a process group, and yield what each used."""
    with suppress(ChildProcessError):
        while True:
            yield os.wait4(-group, 0)[2]


def time_command(command: Sequence[str]) -> Time:
    """Run a command from the project's root and return its time; raises as `time_and_peak` does."""
    return time_and_peak(command)[0]


def print_ratios(label: str, ratios: Sequence[float], target: float | None = None, note: str = "") -> None:
    """Print a line: the median of the ratios, their range, whether the target is met, and a note."""
    middle = median(ratios)
    value_range = f"{min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}"
    result = "" if target is None else f"  target <= {target:.3g}  {'met' if middle <= target else 'MISSED'}"
    print(f"{label:<46} {middle:6.3f}  ({value_range}){result}{'  ' + note if note else ''}", flush=True)

"""What a benchmark leaves: a process's CPU time, clock and peak memory, a table, and the machine and versions it ran on."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import timing

Row = dict[str, Any]
FOLDER = Path(__file__).with_name("results")
PACKAGES = ("freeze-runner", "torch", "torchvision", "lightning", "fastai", "finetuning-scheduler", "hydra-core", "joblib")


@dataclass(frozen=True)
class Used:
    """What a process took: CPU seconds (user and system, its children's included), wall seconds, peak resident bytes."""

    cpu: float
    wall: float
    peak: int


def measured(command: Sequence[str]) -> Used:
    """What a command took, by `timing.measured`."""
    took, peak = timing.measured(command)
    return Used(took.cpu, took.wall, peak)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the quartiles around it (the range, for fewer than four)."""
    found = sorted(values)
    if len(found) < 4:
        return median(found), found[0], found[-1]
    return median(found), found[len(found) // 4], found[-1 - len(found) // 4]


def save(name: str, rows: Sequence[Row], threads: int, quick: bool) -> None:
    """Write a table and what it was measured on; a quick look leaves nothing."""
    if quick:
        return
    FOLDER.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    _write(FOLDER / f"{name}.csv", columns, [{column: _short(row.get(column)) for column in columns} for row in rows])
    told = [{"what": what, "value": value} for what, value in {**machine(), "threads": threads}.items()]
    _write(FOLDER / f"{name}.machine.csv", ["what", "value"], told)


def machine() -> dict[str, str]:
    """Cores, processor and versions; nothing that tells one machine of a kind from another."""
    models = {line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")}
    found = {"cores": str(os.cpu_count()), "processor": ", ".join(sorted(models)) or platform.machine()}
    found |= {"system": platform.system(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

"""Measure a process (CPU time, wall time, peak memory), and save a benchmark's table with the machine and versions."""

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
class Usage:
    """What a process used: CPU seconds (user and system, with its children's), wall seconds, peak resident bytes."""

    cpu: float
    wall: float
    peak: int


def measure_command(command: Sequence[str]) -> Usage:
    """Run a command and return what it used; raises as `timing.time_and_peak` does."""
    time, peak = timing.time_and_peak(command)
    return Usage(time.cpu, time.wall, peak)


def median_and_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile); with fewer than four values (median, minimum, maximum)."""
    ordered = sorted(values)
    if len(ordered) < 4:
        return median(ordered), ordered[0], ordered[-1]
    return median(ordered), ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def save_table(name: str, rows: Sequence[Row], threads: int, quick: bool) -> None:
    """Write a table to NAME.csv, and machine and versions to NAME.machine.csv; with `quick` write nothing."""
    if quick:
        return
    FOLDER.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    _write_csv(FOLDER / f"{name}.csv", columns, [{column: _rounded(row.get(column)) for column in columns} for row in rows])
    facts = [{"what": key, "value": value} for key, value in {**machine(), "threads": threads}.items()]
    _write_csv(FOLDER / f"{name}.machine.csv", ["what", "value"], facts)


def machine() -> dict[str, str]:
    """Cores, processor and versions; nothing that identifies the individual machine."""
    models = {line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")}
    facts = {"cores": str(os.cpu_count()), "processor": ", ".join(sorted(models)) or platform.machine()}
    facts |= {"system": platform.system(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

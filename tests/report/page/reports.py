"""Read the runs of a sweep's folder as the report does."""

from __future__ import annotations

from pathlib import Path

from runner.report.compare.run_set import RunSet
from runner.runs.read import read_run, run_folders

SWEEP = Path("sweep")


def read_sweep() -> RunSet:
    """Return the runs in the folder SWEEP."""
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)

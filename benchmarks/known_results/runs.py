"""Carry out a run of the project in a folder that is removed afterwards."""

from __future__ import annotations

import tempfile
import warnings

from runner.runs.job import Result, run

QUICK = ("threads=1", "device=cpu", "cost=off")


def finished_run(*overrides: str) -> Result:
    """Return the result of a run with these overrides. Raises RuntimeError if it did not finish."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(*QUICK, *overrides, f"hydra.run.dir={folder}")
    if result.status != "finished":
        raise RuntimeError(f"a run is {result.status}: {result.record['reason']}; its overrides are {' '.join(overrides)}")
    return result

"""What runs cost, compared with the run of the same setting in which nothing is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.report.compare.costs import UNFROZEN_TARGET, costs_by_run
from runner.runs.read import read_run, run_folders
from tests.run_folders import LEAKED_ROWS, write_run

SWEEP = Path("sweep")


@pytest.mark.parametrize(("status", "share"), [("finished", 0.25), ("interrupted", None)])
def test_only_a_finished_unfrozen_run_is_the_baseline_of_a_share(status, share):
    frozen = write_run(SWEEP, "zero_lr", cost={"saved_bytes": 2.0})
    nothing_frozen = {"_target_": UNFROZEN_TARGET}
    write_run(SWEEP, "none", rows=LEAKED_ROWS, status=status, method=nothing_frozen, cost={"saved_bytes": 8.0})
    costs = costs_by_run([read_run(folder) for folder in run_folders(SWEEP)])
    assert costs[frozen.name].get("saved_bytes_share") == share

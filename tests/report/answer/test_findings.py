"""The overrides that tell some runs from others, in words."""

from __future__ import annotations

from runner.report.answer.findings import distinguishing_overrides
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import write_run


def test_an_override_that_only_the_others_have_is_the_default():
    write_run(SWEEP, "zero_lr", "freeze=fc")
    write_run(SWEEP, "zero_lr")
    runs = read_sweep().runs
    without = [run for run in runs if "freeze=fc" not in run.record["overrides"]]
    assert distinguishing_overrides(without, runs) == "freeze=default"

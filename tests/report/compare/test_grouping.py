"""The short names of runs: what differs, in an order that reads, each value with its key unless it speaks for itself."""

from __future__ import annotations

import pytest

from runner.report.compare.grouping import short_names
from runner.runs.read import read_run
from tests.report.page.reports import SWEEP
from tests.run_folders import write_run


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("seed=0", "freeze=fc"), "none fc seed 0"),
        (("+optimizer.momentum=0", "freeze=fc"), "none fc optimizer.momentum=0"),
        (("seed=0", "batches=3"), "none batches=3 seed 0"),
        (("freeze.patterns=[fc]",), "none freeze.patterns=[fc]"),
    ],
)
def test_a_name_begins_with_the_method_and_what_is_frozen_and_ends_with_the_seed(overrides, expected):
    folder = write_run(SWEEP, "none", *overrides)
    runs = [read_run(folder), read_run(write_run(SWEEP, "zero_lr"))]
    assert short_names(runs)[folder.name] == expected


def test_a_run_alone_and_runs_that_do_not_differ_have_their_labels():
    folders = [write_run(SWEEP, "none", name=name) for name in ("one", "two")]
    assert short_names([read_run(folders[0])]) == {"one": "one"}
    assert short_names([read_run(folder) for folder in folders]) == {"one": "one", "two": "two"}

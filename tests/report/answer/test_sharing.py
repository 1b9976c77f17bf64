"""The page says which runs used stored outputs of frozen layers, what that saved, and why others used none."""

from __future__ import annotations

from pathlib import Path

from runner.report.answer.sharing import sharing_text
from runner.runs.read import read_run
from tests.run_folders import write_run


def runs_with(*entries):
    """Return runs whose records have these entries `shared`."""
    start = len(list(Path().iterdir()))
    return [read_run(write_run(Path(f"run{start + number}"), shared=entry)) for number, entry in enumerate(entries)]


READ = {"layer": "avgpool", "batches_read": 64, "batches_stored": 16, "reason": "", "flops_not_run": 64_000_000_000}
NOT = {"layer": "", "batches_read": 0, "batches_stored": 0, "reason": "nothing is frozen", "flops_not_run": None}


def test_nothing_is_said_of_runs_that_shared_nothing():
    assert sharing_text(runs_with({}, NOT)) == ""


def test_what_was_read_stored_and_saved_is_added_up_and_reasons_are_given():
    text = sharing_text(runs_with(READ, {**READ, "batches_read": 80, "batches_stored": 0}, NOT, {}))
    assert text == (
        "Outputs of the frozen layers up to avgpool were shared: 2 of 4 runs trained on stored outputs in 144 batches, and "
        "those of 16 batches were stored. That saved 128 GFLOP, which the costs of the runs do not show. Not shared, or not "
        "all, in 1 run: nothing is frozen."
    )


def test_entries_that_another_program_wrote_are_no_error():
    assert sharing_text(runs_with({"batches_read": "many"}, {"batches_read": -1}, {"batches_read": True})) == ""
    assert "were shared" in sharing_text(runs_with({"batches_read": 3}))

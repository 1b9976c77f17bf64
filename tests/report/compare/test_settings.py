"""A setting is what a run was told but the seed; its runs are averaged over, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from runner.report.compare.run_set import RunSet
from runner.runs.read import read_run, run_folders
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, write_run

SWEEP = Path("sweep")


def settings():
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP).settings


def test_runs_that_differ_in_the_seed_alone_are_one_setting_with_the_worst_of_their_outcomes():
    for seed in range(3):
        write_run(SWEEP, "zero_lr", "freeze=fc", f"seed={seed}", rows=LEAKED_ROWS if seed == 1 else HELD_ROWS)
        write_run(SWEEP, "zero_lr", "freeze=backbone", f"seed={seed}")
    assert [(each.name, len(each.runs), each.outcome) for each in settings()] == [
        ("zero_lr backbone", 3, "held"),
        ("zero_lr fc", 3, "leaked"),
    ]


def test_a_run_that_was_repeated_is_no_second_seed():
    for name in ("first", "again", "and again"):
        write_run(SWEEP, "zero_lr", "seed=0", losses=(2.0, 1.5), evaluation={"after": {"accuracy": 0.5}}, name=name)
    (setting,) = settings()
    assert (len(setting.runs), setting.losses, setting.accuracies) == (3, [1.5], [0.5])
    write_run(SWEEP, "zero_lr", "seed=1", losses=(2.0, 2.5), evaluation={"after": {"accuracy": 0.7}})
    (setting,) = settings()
    assert (setting.losses, setting.accuracies) == ([1.5, 2.5], [0.5, 0.7])


def test_records_without_a_seed_count_one_by_one():
    for name in ("first", "again"):
        write_run(SWEEP, "zero_lr", name=name, losses=(2.0, 1.5), **{"seed": None})
    assert settings()[0].losses == [1.5, 1.5]


def test_a_loss_counts_only_where_it_was_finite_at_every_step():
    write_run(SWEEP, "zero_lr", "seed=0", losses=(2.0, 1.5), loss_not_finite_at=1)
    write_run(SWEEP, "zero_lr", "seed=1", losses=(2.0, 2.5))
    assert settings()[0].losses == [2.5]


def test_the_cost_of_a_setting_is_that_of_its_finished_runs_and_empty_where_one_of_them_lacks_it():
    write_run(SWEEP, "zero_lr", "seed=0", cost={"flops_forward": 1, "saved_bytes": 2, "why_small": "x"})
    write_run(SWEEP, "zero_lr", "seed=1", cost={"flops_forward": 3, "why_small": "x"})
    write_run(SWEEP, "zero_lr", "seed=2", status="failed", verdict=None, rows=(), losses=())
    (setting,) = settings()
    assert (setting.cost["flops_forward"], setting.cost["why_small"]) == (2, "x")
    assert "saved_bytes" not in setting.cost

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


def write_composed(method, *overrides, config, **others):
    """Write a run with these overrides and a given composed config."""
    folder = write_run(SWEEP, method, *overrides, **others)
    (folder / ".hydra" / "config.yaml").write_text(config)


BACKBONE = "freeze: {patterns: ['**'], keep: ['@head']}\n"


def test_the_same_config_given_in_two_ways_is_one_setting():
    write_composed("zero_lr", "freeze=backbone", config=BACKBONE)
    write_composed("zero_lr", "freeze.patterns=['**']", "freeze.keep=['@head']", "seed=1", config=f"seed: 1\n{BACKBONE}")
    write_composed("zero_lr", config="freeze: {patterns: ['@head']}\n", name="default")
    write_composed("zero_lr", "freeze=head", "seed=1", config="freeze: {patterns: ['@head']}\nseed: 1\n")
    assert {(each.frozen_set, len(each.runs)) for each in settings()} == {("backbone", 2), ("head", 2)}


def test_two_frozen_sets_with_the_same_text_are_told_apart_by_what_differs():
    for pattern in ("a", "b"):
        write_composed("zero_lr", "freeze=mine", config=f"freeze: {{patterns: [{pattern}]}}\n", name=pattern)
    assert {each.frozen_set for each in settings()} == {"mine patterns=a", "mine patterns=b"}
    assert len({each.name for each in settings()}) == 2


def test_two_contexts_with_the_same_text_are_told_apart_by_what_differs_and_a_long_difference_by_a_number():
    for rate in ("0.1", "0.2"):
        write_composed("zero_lr", "optimizer=mine", config=f"optimizer: {{lr: {rate}}}\n", name=rate)
    assert {each.name for each in settings()} == {"zero_lr optimizer.lr=0.1", "zero_lr optimizer.lr=0.2"}
    values = ", ".join(f"x{number}: {number}" for number in range(9))
    write_composed("zero_lr", "optimizer=mine", config=f"optimizer: {{lr: 0.3, {values}}}\n", name="other")
    assert len({each.name for each in settings()}) == 3
    assert max(len(each.name) for each in settings()) < 100


def test_how_buffers_are_held_is_part_of_the_frozen_set_where_it_differs():
    for buffers in ("live", "frozen"):
        config = f"freeze: {{patterns: [fc], buffers: {buffers}}}\n"
        write_composed("zero_lr", "freeze=fc", *([f"freeze.buffers={buffers}"] * (buffers == "frozen")), config=config)
    assert {each.frozen_set for each in settings()} == {"fc buffers=live", "fc buffers=frozen"}


def test_a_run_whose_config_cannot_be_read_belongs_to_the_setting_of_the_same_overrides():
    for seed in range(2):
        write_composed("zero_lr", "freeze=fc", f"seed={seed}", config=f"freeze: {{patterns: [fc]}}\nseed: {seed}\n")
    write_composed("zero_lr", "freeze=fc", "seed=2", config="")
    assert [len(each.runs) for each in settings()] == [3]


def test_a_value_that_was_not_given_is_that_of_the_composed_config():
    write_composed("zero_lr", "optimizer.lr=0.1", config="optimizer: {lr: 0.1}\n")
    write_composed("zero_lr", config="optimizer: {lr: 0.01}\n", name="default")
    assert {each.context for each in settings()} == {"optimizer.lr=0.1", "optimizer.lr=0.01"}


def test_bare_runs_of_two_configs_are_two_settings():
    for rate in (1, 2):
        write_composed("zero_lr", config=f"optimizer: {{lr: {rate}}}\n", name=str(rate), overrides=[])
    assert sorted(each.name for each in settings()) == ["zero_lr optimizer.lr=1", "zero_lr optimizer.lr=2"]

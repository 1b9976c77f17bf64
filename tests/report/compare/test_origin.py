"""Runs of several machines, versions and dates: what they ran on tells them apart, else the folder they lie in."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from runner.report.__main__ import main
from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.compare.discover import find_runs
from runner.report.compare.origin import facts_of
from runner.report.compare.run_set import RunSet
from runner.report.files import write_sweep_files
from runner.runs.read import read_run
from tests.run_folders import VERSIONS, write_run

NEW = {"versions": VERSIONS | {"torch": "2.15.0"}}
ONE, TWO = Path("one") / "sweep", Path("two") / "sweep"


def run_set(*tops: Path) -> RunSet:
    """The runs below the folders, as `python -m runner.report` reads them."""
    runs = [read_run(folder, label) for label, folder in find_runs(tops).folders.items()]
    return RunSet.of(runs, "report", Path())


def origins(*tops: Path) -> list[dict[str, str]]:
    return sorted((run.origin for run in run_set(*tops).runs), key=str)


def test_runs_of_one_machine_and_several_seeds_are_told_apart_by_nothing():
    for seed, folder in ((0, ONE), (1, ONE), (2, TWO), (3, Path("dates") / "2026-01-01")):
        write_run(folder, "zero_lr", f"seed={seed}")
    assert origins(Path()) == [{}] * 4
    (setting,) = run_set(Path()).settings
    assert len(setting.runs) == 4


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (NEW, [{"torch": "2.14.1"}, {"torch": "2.15.0"}]),
        ({"threads": 2}, [{"threads": "1"}, {"threads": "2"}]),
        ({"device": "cuda"}, [{"device": "cpu"}, {"device": "cuda"}]),
        (NEW | {"threads": 8}, [{"torch": "2.14.1", "threads": "1"}, {"torch": "2.15.0", "threads": "8"}]),
    ],
)
def test_what_runs_ran_on_splits_settings_where_it_differs(record, expected):
    write_run(ONE, "zero_lr", "seed=0")
    write_run(TWO, "zero_lr", "seed=0", **record)
    assert origins(ONE, TWO) == expected
    names = {setting.name for setting in run_set(ONE, TWO).settings}
    assert names == {f"zero_lr {' '.join(f'{key}={value}' for key, value in each.items())}" for each in expected}


def test_a_sweep_that_was_resumed_under_another_torch_is_two_settings():
    write_run(ONE, "zero_lr", "seed=0")
    write_run(ONE, "zero_lr", "seed=1", **NEW)
    assert origins(ONE) == [{"torch": "2.14.1"}, {"torch": "2.15.0"}]
    write_sweep_files(ONE)
    with (ONE / "comparison.csv").open(newline="") as file:
        assert [row["torch"] for row in csv.DictReader(file)] == ["2.14.1", "2.15.0"]


def test_the_same_config_on_two_machines_with_the_same_facts_is_told_apart_by_its_folder():
    for folder in (ONE, TWO):
        write_run(folder, "zero_lr", "seed=0")
    write_run(Path("third") / "sweep", "zero_lr", "seed=5")
    assert origins(Path()) == [{"from": "one/sweep"}, {"from": "two/sweep"}, {}]
    assert len(run_set(Path()).settings) == 3


def test_no_part_of_a_path_is_shown_that_does_not_tell_folders_apart(tmp_path):
    for folder in (Path("deep/down/a"), Path("deep/down/b")):
        write_run(folder, "zero_lr", "seed=0")
    assert origins(tmp_path / "deep") == [{"from": "a"}, {"from": "b"}]


def test_facts_that_tell_repeats_apart_leave_out_the_folder():
    write_run(ONE, "zero_lr", "seed=0")
    write_run(TWO, "zero_lr", "seed=0", **NEW)
    assert all("from" not in origin for origin in origins(ONE, TWO))


def test_a_run_that_did_not_train_gives_no_fact_that_splits_and_has_no_device():
    write_run(ONE, "zero_lr", "seed=0")
    failed = {"status": "failed", "device": "auto", "threads": None, "rows": (), "losses": ()}
    write_run(ONE, "zero_lr", "seed=1", **failed, **NEW)
    write_run(TWO, "zero_lr", "seed=0", **failed)
    assert origins(ONE, TWO) == [{}] * 3
    assert "device" not in facts_of(read_run(next(TWO.iterdir())))


def test_a_run_that_was_interrupted_before_it_trained_splits_nothing():
    write_run(ONE, "zero_lr", "seed=0")
    write_run(ONE, "zero_lr", "seed=1", status="interrupted", device="auto", threads=None, rows=(), losses=())
    assert origins(ONE) == [{}, {}]


def test_a_run_is_compared_with_those_of_its_own_machine():
    for folder, torch, digest, seconds in ((ONE, {}, "a", 1.0), (TWO, NEW, "b", 4.0)):
        for method in ("requires_grad", "none", "zero_lr"):
            more = {"cost": {"seconds_step": seconds if method == "none" else seconds / 2}, **torch}
            more |= {"method": {"_target_": UNFROZEN_TARGET}} if method == "none" else {}
            write_run(folder, method, "seed=0", trained_digest=digest, setting="x", **more)
    found = run_set(ONE, TWO)
    assert {word for word, _ in found.trained_parts.values()} == {"identical"}
    assert {run.label: found.costs[run.label]["seconds_step_share"] for run in found.runs} == {
        run.label: 1 if "none" in run.label else 0.5 for run in found.runs
    }


def test_without_a_baseline_of_its_own_machine_a_run_is_compared_with_one_of_another():
    write_run(ONE, "requires_grad", "seed=0", setting="x", trained_digest="a")
    write_run(TWO, "zero_lr", "seed=0", setting="x", trained_digest="b", **NEW)
    found = run_set(ONE, TWO)
    assert ("differs", "run with other versions") in found.trained_parts.values()


def test_the_origin_is_a_column_of_the_page_and_no_path_of_the_machine_is_in_it(tmp_path, capsys):
    write_run(ONE, "zero_lr", "seed=0")
    shutil.copytree("one", "two")
    write_run(TWO, "none", "seed=0", threads=2)
    assert main([str(tmp_path / "one"), str(tmp_path / "two"), "-o", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert ">from</th>" in page
    assert ">threads</th>" in page
    assert "one/sweep" in page
    assert str(tmp_path) not in page

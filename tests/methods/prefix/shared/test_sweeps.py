"""In a sweep, frozen first layers run once for each sample, and every run trains the very bits that it trains alone."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import read_table

SWEEP, ALONE = Path("sweep"), Path("alone")
RATES = "optimizer.lr=0.1,0.01,0.001"
DIGITS = ("data=digits", "data.holdout=0.2", "data.epochs=4", "model.input=[1,8,8]", "model.classes=10")
FROZEN = (
    "model=mlp",
    "freeze=backbone",
    "freeze.buffers=frozen",
    "batches=4",
    "data.batch_size=4",
    "data.epochs=4",
    "threads=1",
)


def records(folder: Path = SWEEP) -> dict[str, dict]:
    """Return {name of a run: its record}."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))}


def shared(folder: Path = SWEEP) -> list[dict]:
    """Return the entries `shared` of the records."""
    return [record["shared"] for record in records(folder).values()]


def assert_equal_to_runs_alone(cli, *overrides: str) -> None:
    """Carry out the same sweep with nothing shared, and assert that every table and record has the same content."""
    assert cli("-m", *overrides, "sweep.share=none", f"hydra.sweep.dir={ALONE}")[0] == 0
    alone = records(ALONE)
    for name, record in records().items():
        assert (SWEEP / name / "changes.csv").read_bytes() == (ALONE / name / "changes.csv").read_bytes()
        assert losses(SWEEP / name) == losses(ALONE / name)
        left_out = {"shared", "overrides"}
        assert {key: value for key, value in record.items() if key not in left_out} == {
            key: value for key, value in alone[name].items() if key not in left_out
        }


def losses(folder: Path) -> list[str]:
    """Return the losses of a run's steps, as they are written."""
    return [row["loss"] for row in read_table(folder / "steps.csv")]


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.lr=0.1,0.01,0.001",),
        ("data.epochs=12", "optimizer.lr=0.1,0.01"),
        ("method=requires_grad,cached_prefix,detach,to_buffer,exclude,zero_lr,none", "data.epochs=12"),
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in (
                ("model=resnet18", "model.input=[3,32,32]", "optimizer.lr=0.1,0.01,0.001"),
                ("optimizer.lr=0.1,0.01,0.001", "accumulate=2"),
                ("optimizer.lr=0.1,0.01,0.001", "autocast=true"),
                ("optimizer=lbfgs", "optimizer.lr=0.1,0.01,0.001", "groups=one"),
                (
                    "optimizer.lr=0.1,0.01,0.001",
                    "evaluate=epoch",
                    *DIGITS,
                ),
            )
        ),
    ],
)
def test_every_run_has_the_bytes_that_it_has_alone(overrides, cli):
    assert cli("-m", *FROZEN, *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert sum(each.get("batches_read", 0) for each in shared()) > 0
    assert_equal_to_runs_alone(cli, *FROZEN, *overrides)


def test_each_batch_is_computed_once_for_the_sweep_and_the_folder_is_removed_at_its_end(cli):
    assert cli("-m", *FROZEN, "data.epochs=12", "optimizer.lr=0.1,0.01,0.001", f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert [each["batches_stored"] for each in shared()].count(4) == 1
    assert sum(each["batches_stored"] for each in shared()) == 4
    assert sum(each["batches_read"] for each in shared()) == 3 * 4 * 12 - 4
    assert not (SWEEP / ".shared").exists()


def test_a_kept_folder_serves_a_sweep_that_goes_on(cli):
    sweep = ("-m", *FROZEN, "data.epochs=12", "sweep.keep=true", f"hydra.sweep.dir={SWEEP}")
    assert cli(*sweep, "optimizer.lr=0.1")[0] == 0
    assert cli(*sweep, "optimizer.lr=0.1,0.01")[0] == 0
    assert sorted(each["batches_stored"] for each in shared()) == [0, 4]
    assert cli(*sweep, "optimizer.lr=0.1,0.01,0.2", "sweep.keep=false")[0] == 0
    assert sorted(each["batches_stored"] for each in shared()) == [0, 0, 4]
    assert not (SWEEP / ".shared").exists()


def test_runs_with_other_weights_other_samples_or_other_modes_share_nothing(cli):
    grid = ("seed=0,1", "freeze.buffers=live,frozen", "data.epochs=12")
    assert cli("-m", *FROZEN, *grid, f"hydra.sweep.dir={SWEEP}")[0] == 0
    stored = {(r["seed"], r["buffers"]): r["shared"]["batches_stored"] for r in records().values()}
    assert stored == {(0, "frozen"): 4, (1, "frozen"): 4, (0, "live"): 0, (1, "live"): 0}
    assert {r["shared"]["reason"] for r in records().values() if r["buffers"] == "live"} == {
        "norm, a BatchNorm1d, is not held in eval mode and behaves differently in training; give freeze.buffers=frozen"
    }


def test_methods_under_which_frozen_parameters_get_gradients_say_so(cli):
    assert cli("-m", *FROZEN, "method=zero_lr", "optimizer.lr=0.1,0.01,0.001", f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert {each["reason"] for each in shared()} == {"frozen parameters require gradients, so every layer must run"}


def test_parameters_that_a_method_makes_buffers_are_shared_too(cli):
    grid = (RATES, "method=to_buffer")
    assert cli("-m", *FROZEN, *grid, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert sorted(each["batches_stored"] for each in shared()) == [0, 0, 4]
    assert_equal_to_runs_alone(cli, *FROZEN, *grid)


def test_a_limit_of_zero_or_none_shares_nothing(cli):
    for name, override in (("zero", "sweep.share_mb=0"), ("none", "sweep.share=none")):
        assert cli("-m", *FROZEN, "optimizer.lr=0.1,0.01", override, f"hydra.sweep.dir={name}")[0] == 0
        assert all(not each.get("batches_stored") for each in shared(Path(name)))


def test_outputs_beyond_the_limit_are_computed_in_every_run(cli):
    overrides = ("data.epochs=12", "optimizer.lr=0.1,0.01", "sweep.share_mb=0.0015")
    assert cli("-m", *FROZEN, *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert {each["batches_stored"] for each in shared()} == {3, 0}
    assert {each["reason"] for each in shared()} == {"not all outputs are stored: sweep.share_mb=0.0015 is reached"}
    assert_equal_to_runs_alone(cli, *FROZEN, *overrides[:2])


@pytest.mark.parametrize("wrong", ["-1", "nan", "inf", "much"])
def test_a_limit_that_is_no_number_of_0_or_more_is_refused(wrong, cli):
    code, _, err = cli("-m", *FROZEN, f"sweep.share_mb={wrong}", f"hydra.sweep.dir={SWEEP}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "sweep.share_mb" in err


def test_a_word_that_share_does_not_know_is_refused_with_those_that_it_knows(cli):
    code, _, err = cli("-m", *FROZEN, "sweep.share=all", f"hydra.sweep.dir={SWEEP}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "prefix" in err
    assert "none" in err


def test_a_measurement_of_seconds_is_not_shared(cli):
    assert cli("-m", *FROZEN, "cost=time", "optimizer.lr=0.1,0.01", f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert {each["reason"] for each in shared()} == {"cost=time measures the seconds of whole steps"}


def test_a_sweep_goes_on_where_nothing_can_be_stored(cli):
    SWEEP.mkdir()
    (SWEEP / ".shared").write_text("no folder")
    overrides = ("data.epochs=12", "optimizer.lr=0.1,0.01")
    assert cli("-m", *FROZEN, *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert {each["batches_stored"] for each in shared()} == {0}
    assert all("not all outputs are stored: " in each["reason"] for each in shared())
    assert_equal_to_runs_alone(cli, *FROZEN, *overrides)


@pytest.mark.long
def test_a_sweep_goes_on_where_the_disk_takes_no_more(cli):
    wide = ("model.build.width=512", "data.batch_size=256")  # an output has 512 KiB
    command = [sys.executable, "-m", "runner", "-m", *FROZEN, *wide, RATES, f"hydra.sweep.dir={SWEEP}"]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))  # bytes of a file
    assert subprocess.run(command, preexec_fn=limit, capture_output=True).returncode == 0
    assert sorted(each["batches_stored"] for each in shared()) == [0, 0, 2]
    assert all("not all outputs are stored: [Errno 27] File too large" in each["reason"] for each in shared())
    assert_equal_to_runs_alone(cli, *FROZEN, *wide, RATES)


@pytest.mark.long
@pytest.mark.parametrize("name", ["rows", "index"])
@pytest.mark.parametrize("damage", ["cut", "a bit"])
def test_damaged_outputs_are_computed_again(name, damage, cli):
    sweep = ("-m", *FROZEN, "data.epochs=12", "sweep.keep=true", f"hydra.sweep.dir={SWEEP}")
    assert cli(*sweep, "optimizer.lr=0.1")[0] == 0
    (file,) = SWEEP.glob(f".shared/prefix/*/{name}")
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data[:30] if damage == "cut" else data)
    assert cli(*sweep, "optimizer.lr=0.1,0.01")[0] == 0
    assert_equal_to_runs_alone(cli, *FROZEN, "data.epochs=12", "optimizer.lr=0.1,0.01")


@pytest.mark.long
def test_workers_share_what_one_of_them_has_computed(cli):
    overrides = ("data.epochs=12", "optimizer.lr=0.1,0.01,0.001,0.2,0.02,0.002", "launch=joblib", "hydra.launcher.n_jobs=2")
    assert cli("-m", *FROZEN, *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert len(shared()) == 6
    assert all(each["batches_read"] + each["batches_stored"] >= 48 for each in shared())
    assert_equal_to_runs_alone(cli, *FROZEN, *overrides[:2])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_that_is_killed_and_resumed_has_the_bytes_of_runs_alone(seed, cli):
    overrides = (*FROZEN, "data.epochs=12", "optimizer.lr=0.1,0.01,0.001,0.2,0.02,0.002")
    command = [sys.executable, "-m", "runner", "-m", *overrides, f"hydra.sweep.dir={SWEEP}"]
    for attempt in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(SWEEP.glob(".shared/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.Random(10 * seed + attempt).uniform(0, 0.4))
        process.kill()
        process.wait()
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert not (SWEEP / ".shared").exists()
    assert_equal_to_runs_alone(cli, *overrides)


@pytest.mark.long
def test_two_sweeps_on_one_folder_at_the_same_time_both_have_the_bytes_of_runs_alone(cli):
    grids = ("optimizer.lr=0.1,0.01,0.001", "optimizer.lr=0.2,0.02,0.002")
    commands = [
        [sys.executable, "-m", "runner", "-m", *FROZEN, "data.epochs=12", grid, f"hydra.sweep.dir={SWEEP}"] for grid in grids
    ]
    processes = [subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for each in commands]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(records()) == 6
    assert not (SWEEP / ".shared").exists()
    assert_equal_to_runs_alone(cli, *FROZEN, "data.epochs=12", "optimizer.lr=0.1,0.01,0.001,0.2,0.02,0.002")


@pytest.mark.parametrize(("epochs", "reason"), [(3, ""), (2, "24 batches at most are used again")])
def test_whether_sharing_is_worth_its_trials_follows_from_the_grid_not_from_what_has_run(epochs, reason, cli):
    grid = ("optimizer.lr=0.1,0.01,0.001,0.0001", f"data.epochs={epochs}", f"hydra.sweep.dir={SWEEP}")
    assert cli("-m", *FROZEN, *grid)[0] == 0
    assert {each["reason"].rpartition(": ")[2] for each in shared()} == {reason}
    assert sorted(each["batches_stored"] for each in shared()) == [0, 0, 0, 0 if reason else 4]

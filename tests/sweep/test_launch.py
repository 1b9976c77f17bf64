"""Every launcher: the same bytes, and one failing and one killed run among good ones cost nothing but themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_table
from tests.moods import MOODY, write_moods

SWEEP = Path("sweep")
JOBLIB = ("launch=joblib", "hydra.launcher.n_jobs=2")
SEEDS = "seed=1"
SUBMITIT = ("launch=slurm", "hydra/launcher=submitit_local")


def rows(mood: str = "") -> list[dict[str, str]]:
    table = read_table(SWEEP / "comparison.csv")
    return [row for row in table if not mood or row["+model.build.mood"] == mood]


def hold_the_good_against_a_sweep_in_one_process(command):
    """The launcher may not change a bit: the finished runs' tables are those of `launch=local` with as many threads."""
    good = {row["run"]: (SWEEP / row["run"] / "changes.csv").read_bytes() for row in rows() if row["status"] == "finished"}
    local = ("launch=local", "threads=1", "hydra.sweep.dir=local", "+model.build.mood=good,slow", SEEDS)
    assert command("-m", *MOODY[:3], *local).returncode == 0
    assert len(good) == 2
    assert {path.parent.name: path.read_bytes() for path in Path("local").glob("*/changes.csv")} == good


@pytest.fixture(scope="module")
def two_nodes():
    """The address of a Ray cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


@pytest.mark.parametrize(
    "launcher", ["joblib", *(pytest.param(name, marks=pytest.mark.long) for name in ("submitit", "ray"))]
)
def test_a_failing_and_a_killed_run_cost_themselves_alone_and_the_good_have_the_same_bytes(launcher, command, request):
    write_moods()
    launch = {"joblib": JOBLIB, "submitit": SUBMITIT}.get(launcher) or (
        "launch=ray",
        f"hydra.launcher.ray.init.address={request.getfixturevalue('two_nodes')}",
    )
    done = command("-m", *launch, *MOODY, "+model.build.mood=good,fails,dies,slow", SEEDS, timeout=300)
    assert done.returncode == 1, done.stderr
    assert {row["status"] for row in [*rows("good"), *rows("slow")]} == {"finished"}
    assert {row["reason"] for row in rows("fails")} == {"KeyError: 'in a bad mood'"}
    assert all(row["status"] == "failed" and row["reason"].startswith("its process died") for row in rows("dies"))
    failures = read_table(SWEEP / "failures.csv")
    assert len(failures) == 2
    for row in failures:
        assert row["reason"] in done.stdout  # said when it happened
        assert row["reason"] in (SWEEP / row["log"]).read_text()
    assert "Traceback" in (SWEEP / rows("fails")[0]["run"] / "runner.log").read_text()
    assert len({path.name.partition("-")[2] for path in Path("ran").iterdir()}) > 1  # it took several processes
    assert not list(SWEEP.glob("*/.running"))
    hold_the_good_against_a_sweep_in_one_process(command)


@pytest.mark.long
def test_runs_are_spread_over_the_nodes_of_a_ray_cluster(command, two_nodes):
    write_moods()
    source = Path("mine.py").read_text()
    tell = "import ray; Path('nodes').mkdir(exist_ok=True); Path('nodes', ray.get_runtime_context().get_node_id()).touch()"
    Path("mine.py").write_text(
        source.replace("        if self.mood == 'slow'", "").replace("time.sleep(0.5)", f"time.sleep(2); {tell}")
    )
    address = f"hydra.launcher.ray.init.address={two_nodes}"
    assert command("-m", "launch=ray", address, *MOODY, "+model.build.mood=slow", "seed=0,1").returncode == 0
    assert len(list(Path("nodes").iterdir())) == 2


@pytest.mark.parametrize("launch", [JOBLIB, SUBMITIT], ids=["joblib", "submitit"])
@pytest.mark.long
def test_a_step_that_does_not_end_is_ended_with_its_process(launch, command):
    write_moods()
    done = command("-m", *launch, *MOODY, "+model.build.mood=good,hangs", "timeout=6")
    assert done.returncode == 1
    (hung,) = rows("hangs")
    assert hung["reason"] == "the run was not done after timeout=6 seconds, and no step ended: its process was ended"
    assert "in forward" in (SWEEP / hung["run"] / "runner.log").read_text()  # where it hung
    assert [row["status"] for row in rows("good")] == ["finished"]


@pytest.mark.long
def test_a_worker_that_is_killed_from_outside_costs_nothing(command):
    write_moods()
    done = command("-m", *JOBLIB, *MOODY, "+model.build.mood=dies_once,slow", "seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr  # who died in flight was launched again, and did not die again
    assert [row["status"] for row in rows()] == ["finished"] * 4


@pytest.mark.long
def test_on_error_stop_begins_no_more_runs_in_other_processes_either(command):
    write_moods()
    grid = ("+model.build.mood=fails,slow", "seed=0,1,2,3", "on_error=stop")
    assert command("-m", *JOBLIB, *MOODY, *grid).returncode == 1
    assert [row["status"] for row in rows()].count("failed") in (1, 2)  # two go on at once
    assert len(rows()) <= 3
    assert len([path for path in SWEEP.iterdir() if path.is_dir() and not path.name.startswith(".")]) == len(rows())


@pytest.mark.long
@pytest.mark.parametrize("mood", ["dies", "hangs"])
def test_on_error_stop_counts_a_run_that_is_killed_too(mood, command):
    write_moods()
    grid = (f"+model.build.mood={mood},slow", "seed=0,1,2", "on_error=stop", "timeout=8", "batches=40")
    assert command("-m", *JOBLIB, *MOODY, *grid).returncode == 1
    assert (SWEEP / ".stop").exists()
    assert len(rows()) < 6


@pytest.mark.long
def test_a_run_that_hangs_beside_good_ones_costs_itself_alone(command):
    write_moods()
    grid = ("+model.build.mood=hangs,slow", "seed=0,1", "timeout=8", "batches=6")
    assert command("-m", *JOBLIB, *MOODY, *grid).returncode == 1
    assert [row["status"] for row in rows("slow")] == ["finished"] * 2
    assert [row["status"] for row in rows("hangs")] == ["failed"] * 2


@pytest.mark.long
def test_an_interrupt_ends_the_runs_in_other_processes_too():
    write_moods()
    arguments = ["-m", *SUBMITIT, *MOODY, "+model.build.mood=slow", "seed=0,1", "batches=200"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while len(list(SWEEP.glob("*/.running"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(3)
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert {row["status"] for row in rows()} == {"interrupted"}
    assert not list(SWEEP.glob("*/.running"))


@pytest.mark.long
def test_a_sweep_that_is_terminated_records_what_was_in_flight_and_leaves_with_130():
    write_moods()
    arguments = ["-m", *JOBLIB, *MOODY, "+model.build.mood=slow", "seed=range(8)", "batches=8"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while not list(SWEEP.glob("*/run.json")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    statuses = [json.loads(path.read_text())["status"] for path in SWEEP.glob("*/run.json")]
    assert "finished" in statuses
    assert "interrupted" in statuses
    assert set(statuses) == {"finished", "interrupted"}
    assert len(rows()) == len(statuses)


REFUSED = {
    ("launch=ray", "hydra.launcher.ray.init.address=127.0.0.1:9"): "nothing answers at hydra.launcher.ray.init.address",
    ("launch=slurm",): 'Could not detect "srun"',
}


@pytest.mark.parametrize(("launch", "said"), REFUSED.items(), ids=["ray", "slurm"])
@pytest.mark.long
def test_a_launcher_that_is_not_to_be_had_is_one_line_and_code_2(launch, said, command):
    done = command("-m", *launch, "model=mlp", "batches=1", "hydra.sweep.dir=sweep")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in SWEEP.rglob("*") if path.is_file() and path.name != "multirun.yaml"] == []

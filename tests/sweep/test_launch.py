"""Every launcher gives the same bytes, and runs that fail, hang or die do not affect the others."""

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
    """Return the rows of `comparison.csv`, all or those of the runs with this mood."""
    table = read_table(SWEEP / "comparison.csv")
    return [row for row in table if not mood or row["+model.build.mood"] == mood]


def assert_same_tables_as_local_launch(command):
    """Assert that the tables of the two finished runs are identical to those of `launch=local` with one thread."""
    tables = {row["run"]: (SWEEP / row["run"] / "changes.csv").read_bytes() for row in rows() if row["status"] == "finished"}
    local = ("launch=local", "threads=1", "hydra.sweep.dir=local", "+model.build.mood=good,slow", SEEDS)
    assert command("-m", *MOODY[:3], *local).returncode == 0
    assert len(tables) == 2
    assert {path.parent.name: path.read_bytes() for path in Path("local").glob("*/changes.csv")} == tables


@pytest.fixture(scope="module")
def two_nodes():
    """Start a Ray cluster of two nodes with one core each; returns its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


@pytest.mark.parametrize(
    "launcher", ["joblib", *(pytest.param(name, marks=pytest.mark.long) for name in ("submitit", "ray"))]
)
def test_a_failing_and_a_killed_run_do_not_affect_the_others(launcher, command, request):
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
        assert row["reason"] in done.stdout  # printed when the run ended
        assert row["reason"] in (SWEEP / row["log"]).read_text()
    assert "Traceback" in (SWEEP / rows("fails")[0]["run"] / "runner.log").read_text()
    assert len({path.name.partition("-")[2] for path in Path("ran").iterdir()}) > 1  # several processes carried out runs
    assert not list(SWEEP.glob("*/.running"))
    assert_same_tables_as_local_launch(command)


@pytest.mark.long
def test_runs_are_spread_over_the_nodes_of_a_ray_cluster(command, two_nodes):
    write_moods()
    source = Path("mine.py").read_text()
    record_node = (
        "import ray; Path('nodes').mkdir(exist_ok=True); Path('nodes', ray.get_runtime_context().get_node_id()).touch()"
    )
    Path("mine.py").write_text(
        source.replace("        if self.mood == 'slow'", "").replace("time.sleep(0.5)", f"time.sleep(2); {record_node}")
    )
    address = f"hydra.launcher.ray.init.address={two_nodes}"
    assert command("-m", "launch=ray", address, *MOODY, "+model.build.mood=slow", "seed=0,1").returncode == 0
    assert len(list(Path("nodes").iterdir())) == 2


@pytest.mark.parametrize("launch", [JOBLIB, SUBMITIT], ids=["joblib", "submitit"])
@pytest.mark.long
def test_a_step_that_hangs_is_ended_with_its_process(launch, command):
    write_moods()
    done = command("-m", *launch, *MOODY, "+model.build.mood=good,hangs", "timeout=6")
    assert done.returncode == 1
    (hung,) = rows("hangs")
    assert hung["reason"] == "the run was not done after timeout=6 seconds, and no step ended: its process was ended"
    assert "in forward" in (SWEEP / hung["run"] / "runner.log").read_text()  # the stack trace shows where it hung
    assert [row["status"] for row in rows("good")] == ["finished"]


@pytest.mark.long
def test_runs_of_a_killed_worker_are_launched_again(command):
    write_moods()
    done = command("-m", *JOBLIB, *MOODY, "+model.build.mood=dies_once,slow", "seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr  # the run that died was launched again, and finished
    assert [row["status"] for row in rows()] == ["finished"] * 4


@pytest.mark.long
def test_on_error_stop_begins_no_more_runs_in_other_processes_either(command):
    write_moods()
    grid = ("+model.build.mood=fails,slow", "seed=0,1,2,3", "on_error=stop")
    assert command("-m", *JOBLIB, *MOODY, *grid).returncode == 1
    assert [row["status"] for row in rows()].count("failed") in (1, 2)  # two runs are in progress at once
    assert len(rows()) <= 3
    assert len([path for path in SWEEP.iterdir() if path.is_dir() and not path.name.startswith(".")]) == len(rows())


@pytest.mark.long
@pytest.mark.parametrize("mood", ["dies", "hangs"])
def test_on_error_stop_also_stops_after_a_run_whose_process_died(mood, command):
    write_moods()
    grid = (f"+model.build.mood={mood},slow", "seed=0,1,2", "on_error=stop", "timeout=8", "batches=40")
    assert command("-m", *JOBLIB, *MOODY, *grid).returncode == 1
    assert (SWEEP / ".stop").exists()
    assert len(rows()) < 6


@pytest.mark.long
def test_a_run_that_hangs_does_not_affect_the_others(command):
    write_moods()
    grid = ("+model.build.mood=hangs,slow", "seed=0,1", "timeout=8", "batches=6")
    assert command("-m", *JOBLIB, *MOODY, *grid).returncode == 1
    assert [row["status"] for row in rows("slow")] == ["finished"] * 2
    assert [row["status"] for row in rows("hangs")] == ["failed"] * 2


@pytest.mark.long
def test_an_interrupt_also_ends_runs_in_other_processes():
    write_moods()
    arguments = ["-m", *SUBMITIT, *MOODY, "+model.build.mood=slow", "seed=0,1", "batches=200"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(list(SWEEP.glob("*/.running"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3)
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert {row["status"] for row in rows()} == {"interrupted"}
    assert not list(SWEEP.glob("*/.running"))


@pytest.mark.long
def test_a_terminated_sweep_records_the_runs_in_progress_and_exits_with_130():
    write_moods()
    arguments = ["-m", *JOBLIB, *MOODY, "+model.build.mood=slow", "seed=range(8)", "batches=8"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(SWEEP.glob("*/run.json")) and time.monotonic() < deadline:
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


@pytest.mark.parametrize(("launch", "message"), REFUSED.items(), ids=["ray", "slurm"])
@pytest.mark.long
def test_a_launcher_that_is_not_available_is_refused_with_one_line(launch, message, command):
    done = command("-m", *launch, "model=mlp", "batches=1", "hydra.sweep.dir=sweep")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in SWEEP.rglob("*") if path.is_file() and path.name != "multirun.yaml"] == []

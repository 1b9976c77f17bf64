"""Every launcher gives the same bytes, and runs that fail, hang or die do not affect the others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.sweep.launch import WorkerDiedError, reason_of_death
from tests.conftest import ROOT, read_table
from tests.failing_model import FAILING_MODEL, write_failing_model

SWEEP = Path("sweep")
JOBLIB = ("launch=joblib", "hydra.launcher.n_jobs=2")
SEEDS = "seed=1"
SUBMITIT = ("launch=slurm", "hydra/launcher=submitit_local")


def rows(behavior: str = "") -> list[dict[str, str]]:
    """Return the rows of `comparison.csv`, all or those of the runs with this behavior."""
    table = read_table(SWEEP / "comparison.csv")
    return [row for row in table if not behavior or row["+model.build.behavior"] == behavior]


def assert_same_tables_as_local_launch(cli_process):
    """Assert that the tables of the two finished runs are identical to those of `launch=local` with one thread."""
    tables = {row["run"]: (SWEEP / row["run"] / "changes.csv").read_bytes() for row in rows() if row["status"] == "finished"}
    local = ("launch=local", "threads=1", "hydra.sweep.dir=local", "+model.build.behavior=good,slow", SEEDS)
    assert cli_process("-m", *FAILING_MODEL[:3], *local).returncode == 0
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


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit", "ray"])
def test_a_failing_and_a_killed_run_do_not_affect_the_others(launcher, cli_process, request):
    write_failing_model()
    launch = {"joblib": JOBLIB, "submitit": SUBMITIT}.get(launcher) or (
        "launch=ray",
        f"hydra.launcher.ray.init.address={request.getfixturevalue('two_nodes')}",
    )
    done = cli_process("-m", *launch, *FAILING_MODEL, "+model.build.behavior=good,fails,dies,slow", SEEDS, timeout=300)
    assert done.returncode == 1, done.stderr
    assert {row["status"] for row in [*rows("good"), *rows("slow")]} == {"finished"}
    assert {re.sub(r"line \d+", "line N", row["reason"]) for row in rows("fails")} == {
        "mine.py, line N: KeyError: 'on purpose'"
    }
    assert all(row["status"] == "failed" and row["reason"].startswith("its process died") for row in rows("dies"))
    if launcher == "joblib":  # which tells how it died
        assert {row["reason"] for row in rows("dies")} == {"its process died: killed by signal 9 (SIGKILL)"}
    failures = read_table(SWEEP / "failures.csv")
    assert len(failures) == 2
    for row in failures:
        assert row["reason"] in done.stdout  # printed when the run ended
        assert row["reason"] in (SWEEP / row["log"]).read_text()
    assert "Traceback" in (SWEEP / rows("fails")[0]["run"] / "runner.log").read_text()
    assert len({path.name.partition("-")[2] for path in Path("ran").iterdir()}) > 1  # several processes carried out runs
    assert not list(SWEEP.glob("*/.running"))
    assert_same_tables_as_local_launch(cli_process)


@pytest.mark.long
def test_ray_without_an_address_is_started_on_this_machine(cli_process):
    write_failing_model()
    grid = ("+model.build.behavior=good,fails", SEEDS, "++hydra.launcher.ray.init.include_dashboard=false")
    done = cli_process("-m", "launch=ray", *FAILING_MODEL, *grid, timeout=300, RAY_ADDRESS="local")
    assert done.returncode == 1, done.stderr
    assert {row["status"] for row in rows("good")} == {"finished"}
    assert {re.sub(r"line \d+", "line N", row["reason"]) for row in rows("fails")} == {
        "mine.py, line N: KeyError: 'on purpose'"
    }


@pytest.mark.long
def test_runs_are_spread_over_the_nodes_of_a_ray_cluster(cli_process, two_nodes):
    write_failing_model()
    source = Path("mine.py").read_text()
    record_node = (
        "import ray; Path('nodes').mkdir(exist_ok=True); Path('nodes', ray.get_runtime_context().get_node_id()).touch()"
    )
    Path("mine.py").write_text(
        source.replace("        if self.behavior == 'slow'", "").replace("time.sleep(0.5)", f"time.sleep(2); {record_node}")
    )
    address = f"hydra.launcher.ray.init.address={two_nodes}"
    assert cli_process("-m", "launch=ray", address, *FAILING_MODEL, "+model.build.behavior=slow", "seed=0,1").returncode == 0
    assert len(list(Path("nodes").iterdir())) == 2


@pytest.mark.parametrize("launch", [JOBLIB, SUBMITIT], ids=["joblib", "submitit"])
@pytest.mark.long
def test_a_step_that_hangs_is_ended(launch, cli_process):
    write_failing_model()
    done = cli_process("-m", *launch, *FAILING_MODEL, "+model.build.behavior=good,hangs", "timeout=6")
    assert done.returncode == 1
    (hung,) = rows("hangs")
    assert re.fullmatch(r"mine\.py, line \d+: TimeoutError: the run was not done after timeout=6 seconds", hung["reason"])
    assert "in forward" in (SWEEP / hung["run"] / "runner.log").read_text()  # the stack trace shows where it hung
    assert [row["status"] for row in rows("good")] == ["finished"]


@pytest.mark.long
def test_runs_of_a_killed_worker_are_launched_again(cli_process):
    write_failing_model()
    done = cli_process("-m", *JOBLIB, *FAILING_MODEL, "+model.build.behavior=dies_once,slow", "seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr  # the run that died was launched again, and finished
    assert [row["status"] for row in rows()] == ["finished"] * 4


@pytest.mark.long
def test_on_error_stop_begins_no_more_runs_in_other_processes_either(cli_process):
    write_failing_model()
    grid = ("+model.build.behavior=fails,slow", "seed=0,1,2,3", "on_error=stop")
    assert cli_process("-m", *JOBLIB, *FAILING_MODEL, *grid).returncode == 1
    assert [row["status"] for row in rows()].count("failed") in (1, 2)  # two runs are in progress at once
    assert len(rows()) <= 3
    assert len([path for path in SWEEP.iterdir() if path.is_dir() and not path.name.startswith(".")]) == len(rows())


@pytest.mark.long
@pytest.mark.parametrize("behavior", ["dies", "hangs"])
def test_on_error_stop_also_stops_after_a_run_whose_process_died(behavior, cli_process):
    write_failing_model()
    grid = (f"+model.build.behavior={behavior},slow", "seed=0,1,2", "on_error=stop", "timeout=8", "batches=40")
    assert cli_process("-m", *JOBLIB, *FAILING_MODEL, *grid).returncode == 1
    assert not (SWEEP / ".stop").exists()
    assert len(rows()) < 6


@pytest.mark.long
def test_a_run_that_hangs_does_not_affect_the_others(cli_process):
    write_failing_model()
    grid = ("+model.build.behavior=hangs,slow", "seed=0,1", "timeout=8", "batches=6")
    assert cli_process("-m", *JOBLIB, *FAILING_MODEL, *grid).returncode == 1
    assert [row["status"] for row in rows("slow")] == ["finished"] * 2
    assert [row["status"] for row in rows("hangs")] == ["failed"] * 2


@pytest.mark.long
def test_an_interrupt_also_ends_runs_in_other_processes():
    write_failing_model()
    arguments = ["-m", *SUBMITIT, *FAILING_MODEL, "+model.build.behavior=slow", "seed=0,1", "batches=200"]
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
    write_failing_model()
    arguments = ["-m", *JOBLIB, *FAILING_MODEL, "+model.build.behavior=slow", "seed=range(8)", "batches=8"]
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
def test_a_launcher_that_is_not_available_is_refused_with_one_line(launch, message, cli_process):
    done = cli_process("-m", *launch, "model=mlp", "batches=1", "hydra.sweep.dir=sweep")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not SWEEP.exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerDiedError("killed by signal 11 (SIGSEGV)"), "its process died: killed by signal 11 (SIGSEGV)"),
        (RuntimeError("it is gone. Perhaps by SIGKILL"), "its process died (RuntimeError: it is gone)"),
        (OSError(28, "no space"), "its record could not be written (OSError: [Errno 28] no space)"),
        (None, "its process died"),
    ],
)
def test_the_reason_is_what_the_launcher_says(error, reason):
    assert reason_of_death(error) == reason

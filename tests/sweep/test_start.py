"""With `launch.batch` a job of Ray or Slurm carries out several runs in one process; one that dies loses none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import read_table
from tests.failing_model import FAILING_MODEL, write_failing_model

SWEEP = Path("sweep")
SUBMITIT = ("launch=slurm", "hydra/launcher=submitit_local")


def processes(behavior: str) -> set[str]:
    """Return the ids of the processes in which a run with this behavior made a step."""
    return {path.name.rpartition("-")[2] for path in Path("ran").glob(f"{behavior}-*")}


def changes(folder: str) -> dict[str, bytes]:
    """Return the bytes of each run's `changes.csv` in a sweep's folder."""
    return {path.parent.name: path.read_bytes() for path in Path(folder).glob("*/changes.csv")}


@pytest.fixture(scope="module")
def two_cores():
    """Start a Ray cluster with two cores; returns its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["submitit", "ray"])
def test_a_job_carries_out_as_many_runs_as_a_batch_has_and_gives_the_same_bytes(launcher, cli_process, request):
    write_failing_model()
    launch = SUBMITIT
    if launcher == "ray":
        launch = ("launch=ray", f"hydra.launcher.ray.init.address={request.getfixturevalue('two_cores')}")
    grid = ("+model.build.behavior=good", "seed=range(7)", "threads=1")
    done = cli_process("-m", *launch, "launch.batch=3", *FAILING_MODEL, *grid, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 done, 0 failed, 0 left" in done.stdout
    assert len(processes("good")) == 3  # of 3, 3 and 1 runs
    assert not (SWEEP / ".batches.json").exists()
    assert cli_process("-m", "launch=local", *FAILING_MODEL[:3], "hydra.sweep.dir=local", *grid).returncode == 0
    assert changes("sweep") == changes("local")
    assert len(changes("local")) == 7


@pytest.mark.long
def test_the_runs_after_one_that_kills_its_job_are_started_again_and_it_alone_fails(cli_process):
    write_failing_model()
    grid = ("seed=0,1", "+model.build.behavior=good,dies,slow")  # `dies` is in the middle of each batch
    done = cli_process("-m", *SUBMITIT, "launch.batch=3", *FAILING_MODEL, *grid, timeout=300)
    assert done.returncode == 1, done.stderr
    rows = read_table(SWEEP / "comparison.csv")
    assert [row["status"] for row in rows if row["+model.build.behavior"] != "dies"] == ["finished"] * 4
    died = [row for row in rows if row["+model.build.behavior"] == "dies"]
    assert [row["status"] for row in died] == ["failed"] * 2
    assert all(row["reason"].startswith("its process died") for row in died)
    assert len(processes("dies")) == 2 * 3  # with others, once more, and alone
    assert not list(SWEEP.glob("*/.running"))


@pytest.mark.long
def test_a_run_that_fails_does_not_end_its_batch_and_on_error_stop_does(cli_process):
    write_failing_model()
    grid = ("+model.build.behavior=good,fails,slow", "seed=0")
    done = cli_process("-m", *SUBMITIT, "launch.batch=3", *FAILING_MODEL, *grid, timeout=300)
    assert done.returncode == 1, done.stderr
    statuses = {row["+model.build.behavior"]: row["status"] for row in read_table(SWEEP / "comparison.csv")}
    assert statuses == {"good": "finished", "fails": "failed", "slow": "finished"}
    stopped = ("hydra.sweep.dir=stopped", "on_error=stop")
    assert cli_process("-m", *SUBMITIT, "launch.batch=3", *FAILING_MODEL[:3], *stopped, *grid, timeout=300).returncode == 1
    statuses = {row["+model.build.behavior"]: row["status"] for row in read_table(Path("stopped", "comparison.csv"))}
    assert statuses == {"good": "finished", "fails": "failed"}


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "null", "[2]", "{a: 1}"])
def test_a_batch_that_is_no_number_of_runs_is_refused_before_anything_starts(value, cli):
    code, out, err = cli("-m", f"launch.batch={value}", "launch=local", "model=mlp", "hydra.sweep.dir=sweep", "seed=0,1")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "launch.batch" in err
    assert not SWEEP.exists()

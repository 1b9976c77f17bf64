"""Workers of a joblib sweep are started once and import torch once; if one dies, its run alone is affected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.sweep.launch import WorkerDiedError
from tests.conftest import ROOT, read_table

SWEEP = Path("sweep")
JOBLIB = ("launch=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep")
NET = ("model=mlp", "model.build._target_=net.Net", "batches=2", "cost=off")
SOURCE = '''
import os, signal, sys, time
from pathlib import Path
import runner.training.models

IMPORTED = time.monotonic_ns()  # of this module in this process


class Net(runner.training.models.MLP):
    """An MLP that writes a line into `forward.txt` in each step: its process, the run, and what that process has imported.

    `end`: how it ends its process in the first step, unless a file `survive` exists. `seconds`: how long a step takes.
    """

    def __init__(self, features, width, classes, end="none", seconds=0.0):
        super().__init__(features, width, classes)
        self.end, self.seconds = end, seconds

    def forward(self, x):
        with open("forward.txt", "a") as file:
            file.write(f"{os.getpid()} {os.getppid()} {id(sys.modules['torch'])} {IMPORTED}\\n")
        if self.end == "exit":
            import ctypes
            ctypes.CDLL(None)._exit(7)
        if self.end.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.end])
        time.sleep(self.seconds)
        return super().forward(x)
'''


@pytest.fixture(autouse=True)
def _write_model():
    Path("net.py").write_text(SOURCE)


def steps() -> list[list[str]]:
    """Return, for each training step of any run: process, its parent, torch's address in it, when it imported the model."""
    return [line.split() for line in Path("forward.txt").read_text().splitlines()]


def changes(folder: str) -> dict[str, bytes]:
    """Return the bytes of each run's `changes.csv` in a sweep's folder."""
    return {path.parent.name: path.read_bytes() for path in Path(folder).glob("*/changes.csv")}


def is_living(process: str) -> bool:
    """Return whether a process with this id exists and has not ended."""
    stat = Path("/proc", process, "stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def started(*overrides: str) -> subprocess.Popen[bytes]:
    """Start a sweep with workers, and wait until both of them are in a step."""
    command = [sys.executable, "-m", "runner", "-m", *JOBLIB, *NET, *overrides]
    sweep = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (Path("forward.txt").exists() and len({line[0] for line in steps()}) == 2):
        time.sleep(0.05)
    return sweep


def assert_ended(processes: set[str]) -> None:
    """Assert that none of the processes lives, a few seconds later."""
    deadline = time.monotonic() + 20
    while any(map(is_living, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(filter(is_living, processes))


@pytest.mark.long
def test_two_workers_carry_out_24_runs_and_give_the_bytes_of_one_process(cli_process):
    grid = ("method=requires_grad,zero_lr,none", "seed=range(8)", "threads=1")
    done = cli_process("-m", *JOBLIB, *NET, *grid, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(steps()) == 24 * 2
    workers = {(process, torch, imported) for process, _, torch, imported in steps()}
    assert len({process for process, *_ in workers}) == 2
    assert len(workers) == 2  # each of them imported the model once
    assert_ended({process for line in steps() for process in line[:2]})
    assert cli_process("-m", "launch=local", "hydra.sweep.dir=local", *NET, *grid, timeout=300).returncode == 0
    assert changes("sweep") == changes("local")
    assert len(changes("local")) == 24


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere each worker imports torch for itself")
def test_torch_is_imported_once_for_all_workers(cli_process):
    done = cli_process("-m", *JOBLIB, *NET, "seed=0,1,2,3", timeout=300)
    assert done.returncode == 0, done.stderr
    assert len({parent for _, parent, *_ in steps()}) == 1
    assert (
        len({torch for _, _, torch, _ in steps()}) == 1
    )  # at one address in all of them: they were forked after the import


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("SIGKILL", "its process died: killed by signal 9 (SIGKILL)"),
        ("SIGSEGV", "its process died: killed by signal 11 (SIGSEGV)"),
        ("exit", "its process died: it ended with exit code 7 before the run had ended"),
    ],
)
def test_a_worker_that_dies_ends_its_run_alone(end, reason, cli_process):
    done = cli_process(
        "-m", *JOBLIB, *NET, f"+model.build.end=none,{end}", "seed=0,1,2,3", "++model.build.seconds=0.3", timeout=300
    )
    assert done.returncode == 1
    rows = read_table(SWEEP / "comparison.csv")
    assert [row["status"] for row in rows if row["+model.build.end"] == "none"] == ["finished"] * 4
    assert {row["reason"] for row in rows if row["+model.build.end"] == end} == {reason}
    # Each of the four was started with the others, once more, and alone; the others were started once.
    assert len(steps()) == 4 * 3 + 4 * 2
    assert_ended({process for process, *_ in steps()})


@pytest.mark.long
def test_a_worker_killed_from_outside_is_replaced_and_its_run_started_again():
    sweep = started("seed=range(4)", "+model.build.seconds=0.5", "batches=4")
    first, second = dict.fromkeys(process for process, *_ in steps())
    os.kill(int(first), signal.SIGKILL)
    out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, err
    assert b"4 done, 0 failed, 0 left" in out
    used = [process for process, *_ in steps()]
    assert len(set(used)) == 3
    assert used.count(second) >= 4  # it finished the run that it was in
    assert_ended(set(used))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_sweep_whatever_ends_it(number):
    sweep = started("seed=range(4)", "+model.build.seconds=0.5", "batches=400")
    sweep.send_signal(number)
    sweep.communicate(timeout=60)
    assert sweep.returncode == (-9 if number == signal.SIGKILL else 130)
    assert_ended({process for line in steps() for process in line[:2]})
    records = [json.loads(path.read_text()) for path in SWEEP.glob("*/run.json")]
    assert [record["status"] for record in records] == ["interrupted"] * 2
    assert not list(SWEEP.glob("*/.running"))


@pytest.mark.long
def test_a_run_over_the_time_of_the_launcher_is_ended(cli_process):
    done = cli_process("-m", *JOBLIB, *NET, "+model.build.seconds=0,600", "hydra.launcher.timeout=3", timeout=300)
    assert done.returncode == 1
    rows = {row["+model.build.seconds"]: row for row in read_table(SWEEP / "comparison.csv")}
    assert rows["0"]["status"] == "finished"
    assert rows["600"]["reason"] == "its process died: the run was not done after hydra.launcher.timeout=3 seconds"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (-11, "killed by signal 11 (SIGSEGV)"),
        (-200, "killed by signal 200"),
        (0, "it ended with exit code 0 before the run had ended"),
    ],
)
def test_the_reason_names_the_signal_or_the_exit_code(code, reason):
    assert str(WorkerDiedError.from_exit_code(code)) == reason

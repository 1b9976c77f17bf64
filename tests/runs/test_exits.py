"""What ends a process from inside a run, in the code of the user: the run is recorded as failed, and never ends with 0."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runner import run
from runner.runs.exits import exit_process, guard_process
from tests.conftest import ROOT, read_table

SOURCE = """
import os, sys, threading, time
import runner.training.models


def thread_exits():
    thread = threading.Thread(target=os._exit, args=(0,))
    thread.start()
    thread.join()


def forks(leave):
    child = os.fork()
    if child == 0:
        leave()
    elif leave is not returns:
        code = os.WEXITSTATUS(os.waitpid(child, 0)[1])
        assert code == {exits: 7, raises: 1, sys_exits: 5}[leave]


def exits(): os._exit(7)
def raises(): raise KeyError("in the child")
def sys_exits(): sys.exit(5)
def returns(): pass


BEHAVIORS = {
    "os_exit": lambda: os._exit(0),
    "sys_exit": lambda: sys.exit(0),
    "exit": exit,
    "thread_exits": thread_exits,
    **{f"fork_{leave.__name__}": lambda leave=leave: forks(leave) for leave in (exits, raises, sys_exits, returns)},
}


class Net(runner.training.models.MLP):
    def __init__(self, features, width, classes, behavior="good", inside="forward"):
        super().__init__(features, width, classes)
        self.act = BEHAVIORS.get(behavior, lambda: None)
        self.forward_acts = inside == "forward"
        if inside == "constructor":
            self.act()

    def forward(self, x):
        if self.forward_acts:
            self.act()
        return super().forward(x)
"""
MODEL = ("model=mlp", "batches=2", "model.build._target_=mine.Net")
REASONS = {
    "os_exit": "SystemExit: the code of the run called os._exit(0)",
    "sys_exit": "SystemExit: 0",
    "exit": "SystemExit: None",
}


@pytest.fixture(autouse=True)
def _write_model():
    """Write the module of the model into the current folder."""
    Path("mine.py").write_text(SOURCE)


@pytest.mark.parametrize("inside", ["constructor", "forward"])
@pytest.mark.parametrize("behavior", REASONS)
def test_a_run_whose_code_ends_the_process_fails_and_exits_with_1(behavior, inside, cli):
    code, out, err = cli(*MODEL, f"+model.build.behavior={behavior}", f"+model.build.inside={inside}", "hydra.run.dir=run")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"freeze-runner: failed: mine\.py, line \d+: {re.escape(REASONS[behavior])} \(log: run/runner\.log\)\n", err
    )
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "failed"
    assert re.fullmatch(rf"mine\.py, line \d+: {re.escape(REASONS[behavior])}", record["reason"])
    assert "mine.py" in Path("run/runner.log").read_text()  # the traceback
    assert os._exit is exit_process


def test_the_other_runs_of_a_sweep_go_on_after_a_run_that_called_exit(cli):
    code, _, _ = cli("-m", *MODEL, "+model.build.behavior=os_exit,sys_exit,good", "hydra.sweep.dir=sweep")
    assert code == 1
    statuses = {row["+model.build.behavior"]: row["status"] for row in read_table(Path("sweep/comparison.csv"))}
    assert statuses == {"os_exit": "failed", "sys_exit": "failed", "good": "finished"}


@pytest.mark.parametrize("behavior", ["os_exit", "sys_exit"])
def test_a_plan_whose_model_ends_the_process_exits_with_1(behavior, cli):
    code, _, err = cli(*MODEL, f"+model.build.behavior={behavior}", "plan=true")
    assert code == 1
    assert re.fullmatch(rf"freeze-runner: failed: mine\.py, line \d+: {re.escape(REASONS[behavior])}\n", err)


@pytest.mark.parametrize("behavior", ["os_exit", "sys_exit"])
def test_run_from_python_raises_and_never_exits(behavior):
    with pytest.raises(RuntimeError, match="SystemExit"):
        run(*MODEL, f"+model.build.behavior={behavior}")
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("inside", ["constructor", "forward"])
@pytest.mark.parametrize("leave", ["exits", "raises", "sys_exits", "returns"])
def test_a_forked_child_writes_and_prints_nothing(leave, inside, cli):
    arguments = (*MODEL, f"+model.build.behavior=fork_{leave}", f"+model.build.inside={inside}")
    code, out, err = cli(*arguments, "hydra.run.dir=run", "freeze=none", "method=requires_grad")
    assert (code, err) == (0, "")
    assert out.count("files: run") == 1
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
    log = Path("run/runner.log").read_text()
    assert (log.count("finished"), "in the child" in log) == (1, False)


def test_a_thread_that_calls_exit_ends_a_sweep_with_1_a_table_and_the_command_that_goes_on(cli_process):
    done = cli_process("-m", *MODEL, "+model.build.behavior=thread_exits,good", "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(": the code of the run called os._exit(0)\n")
    assert [row["reason"] for row in read_table(Path("sweep/comparison.csv"))] == ["the code of the run called os._exit(0)"]
    assert "3 not begun of 4 runs; this command goes on:\n  python -m runner -m model=mlp" in done.stdout
    assert not list(Path("sweep").rglob(".running"))


def test_exit_inside_the_block_raises_in_its_thread_only_and_is_restored():
    ended = []
    with pytest.raises(SystemExit, match=r"os\._exit\(3\)"), guard_process(ended.append):  # noqa: PT012
        exit_inside = os._exit
        os._exit(3)
    assert os._exit is exit_process
    assert exit_inside is not exit_process
    assert ended == []


def test_a_crash_leaves_its_stack_traces_in_the_log_and_not_on_the_screen():
    code = (
        "import ctypes; from pathlib import Path; from runner.runs.exits import crash_dumps_in\n"
        "with crash_dumps_in(Path('log')):\n    ctypes.string_at(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (-11, b"")
    assert "Segmentation fault" in Path("log").read_text()


def test_faulthandler_is_as_before_after_a_run():
    was_enabled = faulthandler.is_enabled()
    assert run("model=mlp", "batches=1", "cost=off").status == "finished"
    assert faulthandler.is_enabled() == was_enabled

"""What ends a process from inside a run, in the code of the user: the run is recorded as failed, and never ends with 0."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runner import run
from runner.runs.exits import exit_process, guard_process
from runner.runs.interrupts import import_dependencies
from runner.runs.job import Result, record_process_end
from tests.conftest import ROOT, read_table

SOURCE = """
import os, sys, threading, time
from pathlib import Path
import runner.training.models


class Stop(BaseException): pass


def raises_exception(error): raise error


def thread_exits(join=True):
    thread = threading.Thread(target=os._exit, args=(0,))
    thread.start()
    if join:
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
    "generator_exit": lambda: raises_exception(GeneratorExit()),
    "own_exception": lambda: raises_exception(Stop("enough")),
    "thread_exits": thread_exits,
    "thread_exits_meanwhile": lambda: thread_exits(join=False),
    **{f"fork_{leave.__name__}": lambda leave=leave: forks(leave) for leave in (exits, raises, sys_exits, returns)},
}


class Net(runner.training.models.MLP):
    def __init__(self, features, width, classes, behavior="good", inside="forward"):
        super().__init__(features, width, classes)
        self.act = BEHAVIORS.get(behavior, lambda: None)
        self.forward_acts, self.writing_acts = inside == "forward", inside == "writing"
        if inside == "constructor":
            self.act()

    def state_dict(self, *args, **options):
        if self.writing_acts and any(Path().rglob("changes.csv")):
            self.act()
            time.sleep(1)
        return super().state_dict(*args, **options)

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
    "generator_exit": "GeneratorExit",
    "own_exception": "Stop: enough",
}


@pytest.fixture(autouse=True)
def _write_model():
    """Write the module of the model into the current folder."""
    Path("mine.py").write_text(SOURCE)


@pytest.mark.parametrize("inside", ["constructor", "forward"])
@pytest.mark.parametrize("behavior", REASONS)
def test_a_run_whose_code_exits_or_raises_anything_fails_and_exits_with_1(behavior, inside, cli):
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


@pytest.mark.long
@pytest.mark.parametrize("inside", ["constructor", "forward"])
@pytest.mark.parametrize("launch", [[], ["launch=joblib", "hydra.launcher.n_jobs=2"]], ids=["local", "joblib"])
def test_the_other_runs_of_a_sweep_go_on_after_a_run_that_exits_or_raises_anything(inside, launch, cli_process):
    behaviors = f"+model.build.behavior={','.join(REASONS)},good"
    done = cli_process("-m", *MODEL, behaviors, f"+model.build.inside={inside}", *launch, "hydra.sweep.dir=sweep")
    assert (done.returncode, done.stderr) == (1, "")
    rows = {row["+model.build.behavior"]: row for row in read_table(Path("sweep/comparison.csv"))}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(REASONS, "failed") | {"good": "finished"}
    assert all(rows[name]["reason"].endswith(f": {reason}") for name, reason in REASONS.items())
    assert not list(Path("sweep").rglob(".running"))


@pytest.mark.parametrize("behavior", ["os_exit", "sys_exit", "own_exception"])
def test_a_plan_whose_model_ends_the_process_exits_with_1(behavior, cli):
    code, _, err = cli(*MODEL, f"+model.build.behavior={behavior}", "plan=true")
    assert code == 1
    assert re.fullmatch(rf"freeze-runner: failed: mine\.py, line \d+: {re.escape(REASONS[behavior])}\n", err)


@pytest.mark.parametrize("behavior", ["os_exit", "sys_exit", "own_exception"])
def test_run_from_python_raises_and_never_exits(behavior):
    with pytest.raises(RuntimeError, match=re.escape(REASONS[behavior])):
        run(*MODEL, f"+model.build.behavior={behavior}")
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("inside", ["constructor", "forward"])
@pytest.mark.parametrize("leave", ["exits", "raises", "sys_exits", "returns"])
def test_a_forked_child_writes_and_prints_nothing(leave, inside, cli):
    arguments = (*MODEL, f"+model.build.behavior=fork_{leave}", f"+model.build.inside={inside}")
    code, out, err = cli(*arguments, "hydra.run.dir=run", "freeze=none", "method=requires_grad")
    assert (code, err) == (0, "")
    assert out.count("run/report.html") == 1
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
    log = Path("run/runner.log").read_text()
    assert (log.count("finished"), "in the child" in log) == (1, False)


@pytest.mark.long
@pytest.mark.parametrize("behavior", [pytest.param("thread_exits", marks=pytest.mark.long), "thread_exits_meanwhile"])
def test_a_thread_that_calls_exit_ends_a_sweep_with_1_a_table_and_the_command_that_goes_on(behavior, cli_process):
    Path("sweep/.shared/trials").mkdir(parents=True)  # as the runs of an earlier start left it
    done = cli_process("-m", *MODEL, f"+model.build.behavior={behavior},good", "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(": the code of the run called os._exit(0)\n")
    (row,) = read_table(Path("sweep/comparison.csv"))
    assert (row["status"], row["reason"]) == ("failed", "the code of the run called os._exit(0)")
    assert "\n4 of 4 are not done; go on with:\npython -m runner -m model=mlp" in done.stdout
    assert not list(Path("sweep").rglob(".running"))
    assert not Path("sweep/.shared").exists()
    log = (Path("sweep") / row["run"] / "runner.log").read_text()
    assert ("refuse_exit" in log, " finished" in log) == (True, False)  # the stack trace shows who called os._exit


@pytest.mark.long
def test_a_run_whose_code_exits_while_its_files_are_written_fails_too(cli_process):
    pytest.importorskip("safetensors")
    arguments = ("save=true", "+model.build.behavior=os_exit", "+model.build.inside=writing", "hydra.run.dir=run")
    assert cli_process(*MODEL, *arguments).returncode == 1
    record = json.loads(Path("run/run.json").read_text())
    assert (record["status"], record["reason"].endswith(REASONS["os_exit"])) == ("failed", True)
    assert not Path("run/changes.csv").exists()


@pytest.mark.long
def test_a_thread_that_calls_exit_while_the_files_of_a_run_are_written_ends_only_itself(cli_process):
    pytest.importorskip("safetensors")
    arguments = ("+model.build.behavior=thread_exits_meanwhile", "+model.build.inside=writing", "seed=0,1", "save=true")
    done = cli_process("-m", *MODEL, *arguments, "hydra.sweep.dir=sweep")
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["status"] for row in read_table(Path("sweep/comparison.csv"))] == ["finished"] * 2
    assert len(list(Path("sweep").glob("*/model.safetensors"))) == 2


@pytest.mark.long
def test_a_thread_that_calls_exit_while_the_sweeps_files_are_written_ends_only_itself():
    code = (
        "import os, sys, threading, time; import runner.report.files as files; from runner.__main__ import main\n"
        "write = files.write_sweep_files\n"
        "def late(*given):\n"
        "    threading.Thread(target=lambda: os._exit(0)).start(); time.sleep(0.5)\n"
        "    return write(*given)\n"
        "files.write_sweep_files = late\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "-m", "model=mlp", "batches=1", "freeze=head,fc", "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert sorted(row["status"] for row in read_table(Path("sweep/comparison.csv"))) == ["failed", "finished"]


def ended_process(end: str, body: str) -> subprocess.CompletedProcess[str]:
    """Run `body` in a new process, inside blocks of `end_once(END, Path("log"))` and `guard_process`, then print `after`.

    `end`: a Python expression, the function that is called when another thread calls `os._exit`.
    """
    code = (
        "import os, signal, threading, time; from pathlib import Path\n"
        "from runner.runs.exits import end_once, exit_process, guard_process\n"
        f"with end_once({end}, Path('log')) as end, guard_process(end):\n    {body}\nprint('after', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


EXIT_IN_THREAD = "threading.Thread(target=os._exit, args=(0,)).start()"


def test_the_thread_of_the_block_does_nothing_while_another_thread_ends_the_process():
    done = ended_process("lambda reason: time.sleep(1) or print(reason, flush=True)", EXIT_IN_THREAD)
    assert (done.returncode, done.stdout, done.stderr) == (1, "the code of the run called os._exit(0)\n", "")


def test_only_one_of_two_threads_that_call_exit_ends_the_process():
    done = ended_process("lambda reason: time.sleep(1) or print(reason, flush=True)", f"{EXIT_IN_THREAD}; {EXIT_IN_THREAD}")
    assert (done.returncode, done.stdout.count("os._exit")) == (1, 1)


def test_the_process_ends_too_if_recording_the_end_fails():
    done = ended_process("lambda reason: 1 / 0", f"{EXIT_IN_THREAD}; time.sleep(60)")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_run_whose_end_cannot_be_recorded_ends_and_says_so(capsys):
    result = Result(Path("no such folder"), {"notes": []}, exit_code=1)
    record_process_end(result, print, "the code of the run called os._exit(0)")
    said = capsys.readouterr().out
    assert said.startswith("the code of the run called os._exit(0), and its record could not be written (")


def test_exit_in_a_thread_that_outlives_the_block_is_handled_by_the_block_around_it():
    body = (
        "with end_once(print, Path('log')) as inner, guard_process(inner): exits = inner\n"
        "    threading.Thread(target=lambda: (exits('late'), os._exit(0))).start(); time.sleep(60)"
    )
    done = ended_process("lambda reason: print('outer', flush=True)", body)
    assert (done.returncode, done.stdout) == (1, "outer\n")


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


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["-X", "faulthandler"]], ids=["off", "on"])
def test_a_crash_after_a_run_is_reported_as_it_was_before(options):
    code = (
        "import ctypes; from runner import run\n"
        "assert run('model=mlp', 'batches=1', 'cost=off', 'hydra.run.dir=run').status == 'finished'\n"
        "ctypes.string_at(0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Segmentation fault" in done.stderr) == (-11, bool(options))
    assert "Segmentation fault" not in Path("run/runner.log").read_text()


WRITER = """
import atexit
from torch import nn

LOG = open("log.txt", "a")
atexit.register(lambda: LOG.write("end\\n"))


class Net(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        LOG.write("built\\n")
"""


@pytest.mark.long
@pytest.mark.parametrize("sweep", [(), ("-m", "launch=joblib", "hydra.launcher.n_jobs=2", "seed=0,1")])
def test_what_a_users_module_left_to_be_written_at_the_end_is_written(sweep, cli_process):
    Path("writer.py").write_text(WRITER)
    net = ("model=custom", "model.build._target_=writer.Net", "model.input=[64]", "model.classes=10")
    assert cli_process(*sweep, *net, "batches=2", "freeze.patterns=[bias]", "cost=off").returncode == 0
    processes = 3 if sweep else 1  # one of them checks the patterns
    assert Path("log.txt").read_text().count("built") == (3 if sweep else 1)
    assert Path("log.txt").read_text().count("end") == processes


def test_nothing_is_kept_from_garbage_collection_that_is_not_imported():
    frozen = gc.get_freeze_count()
    import_dependencies.__wrapped__()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen

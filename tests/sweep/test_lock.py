"""A run's folder belongs to one living process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from runner.sweep.lock import clear, died, is_held, locked, remove_if_empty, wait_until_free
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from runner.sweep.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder():
    """Starts a process that locks a folder for some seconds, and returns it."""
    with ExitStack() as processes:

        def start(folder: Path, seconds: float, *, until_held: bool = True) -> subprocess.Popen:
            command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = processes.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
            processes.callback(process.kill)
            assert not until_held or process.stdout.readline() == b"held\n"
            return process

        yield start


def test_a_folder_is_held_until_its_process_dies_and_says_then_that_a_run_began(tmp_path, holder):
    assert not is_held(tmp_path)
    assert not died(tmp_path)
    process = holder(tmp_path, 60)
    assert is_held(tmp_path)
    assert not died(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_held(tmp_path)
    assert died(tmp_path)
    assert not died(tmp_path)  # it is said once, and the next that begins is another


def test_a_second_process_waits_for_the_first(tmp_path, holder):
    process = holder(tmp_path, 1)
    with locked(tmp_path):
        assert process.poll() is not None or process.wait(timeout=5) == 0


def test_waiting_for_a_folder_ends_with_its_process_or_with_the_time(tmp_path, holder):
    process = holder(tmp_path, 60)
    start = time.monotonic()
    wait_until_free([tmp_path], seconds=0.2)
    assert is_held(tmp_path)
    assert time.monotonic() - start >= 0.2
    process.kill()
    process.wait()
    wait_until_free([tmp_path])
    assert not is_held(tmp_path)


def test_a_run_that_left_its_record_leaves_no_claim(tmp_path):
    with locked(tmp_path):
        (tmp_path / "run.json").write_text("{}")
    assert not died(tmp_path)
    assert os.listdir(tmp_path) == ["run.json"]


@dataclass
class Run:
    folder: Path
    finished: bool


def test_what_an_earlier_try_left_is_taken_away_unless_it_lives_or_has_finished_by_now(tmp_path, holder):
    (tmp_path / "run.json").write_text("{}")
    clear(Run(tmp_path, finished=True))
    assert (tmp_path / "run.json").exists()
    process = holder(tmp_path, 60)
    clear(Run(tmp_path, finished=False))
    assert is_held(tmp_path)
    assert (tmp_path / "run.json").exists()
    process.kill()
    process.wait()
    clear(Run(tmp_path, finished=False))
    assert os.listdir(tmp_path) == []
    clear(Run(tmp_path / "nowhere", finished=False))


def test_who_waited_for_a_folder_marks_it_anew(tmp_path, holder):
    process = holder(tmp_path, 1)
    waiter = holder(tmp_path, 60, until_held=False)
    time.sleep(0.5)
    (tmp_path / ".running").unlink()  # as the first does when it ends, while the second waits
    process.wait()
    assert waiter.stdout.readline() == b"held\n"
    assert is_held(tmp_path)


def test_only_a_folder_that_holds_nothing_of_a_run_is_removed(tmp_path):
    for name in ("never_begun", "ended"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
    (tmp_path / "ended" / "runner.log").write_text("why")
    for name in ("never_begun", "ended", "nowhere"):
        remove_if_empty(tmp_path / name)
    assert os.listdir(tmp_path) == ["ended"]


def test_looking_at_a_folder_creates_nothing(tmp_path):
    folder = tmp_path / "sweep" / "run"
    folder.mkdir(parents=True)
    assert not is_held(folder)
    assert not died(folder)
    wait_until_free([folder, tmp_path / "nowhere" / "run"])
    assert [path.name for path in tmp_path.rglob("*")] == ["sweep", "run"]


def test_a_run_that_ended_leaves_nothing_in_its_folder_and_one_that_is_in_progress_a_mark(tmp_path):
    folder = tmp_path / "sweep" / "run"
    folder.mkdir(parents=True)
    with locked(folder):
        assert os.listdir(folder) == [".running"]
        (folder / "run.json").touch()
    assert os.listdir(folder) == ["run.json"]
    assert [path.name for path in (tmp_path / "sweep" / ".locks").iterdir()] == ["run"]

"""A run's folder is locked by one living process at a time."""

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

from runner.sweep.lock import clear_folder, detect_death, is_locked, locked, remove_if_unused, wait_until_free
from tests.conftest import ROOT

LOCK_FOLDER = """
import sys, time
from pathlib import Path
from runner.sweep.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1], "released").touch()
"""


@pytest.fixture
def locking_process():
    """Start a process that locks a folder for some seconds, and returns it."""
    with ExitStack() as processes:

        def start(folder: Path, seconds: float, *, until_locked: bool = True) -> subprocess.Popen:
            command = [sys.executable, "-c", LOCK_FOLDER, str(folder), str(seconds)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = processes.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
            processes.callback(process.kill)
            assert not until_locked or process.stdout.readline() == b"locked\n"
            return process

        yield start


def test_a_folder_is_locked_until_its_process_dies_and_the_death_is_detected_once(tmp_path, locking_process):
    assert not is_locked(tmp_path)
    assert not detect_death(tmp_path)
    process = locking_process(tmp_path, 60)
    assert is_locked(tmp_path)
    assert not detect_death(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_locked(tmp_path)
    assert detect_death(tmp_path)
    assert not detect_death(tmp_path)


def test_a_second_process_waits_for_the_first(tmp_path, locking_process):
    locking_process(tmp_path, 1)
    with locked(tmp_path):
        assert (tmp_path / "released").exists()


def test_waiting_for_a_folder_ends_when_its_process_dies_or_the_time_is_over(tmp_path, locking_process):
    process = locking_process(tmp_path, 60)
    start = time.monotonic()
    wait_until_free([tmp_path], seconds=0.2)
    assert is_locked(tmp_path)
    assert time.monotonic() - start >= 0.2
    process.kill()
    process.wait()
    wait_until_free([tmp_path])
    assert not is_locked(tmp_path)


def test_after_a_run_with_a_record_its_folder_has_no_mark(tmp_path):
    with locked(tmp_path):
        (tmp_path / "run.json").write_text("{}")
    assert not detect_death(tmp_path)
    assert os.listdir(tmp_path) == ["run.json"]


@dataclass
class FakeRun:
    folder: Path
    finished: bool


def test_files_of_an_earlier_attempt_are_removed_unless_it_is_locked_or_finished(tmp_path, locking_process):
    (tmp_path / "run.json").write_text("{}")
    clear_folder(FakeRun(tmp_path, finished=True))
    assert (tmp_path / "run.json").exists()
    process = locking_process(tmp_path, 60)
    clear_folder(FakeRun(tmp_path, finished=False))
    assert is_locked(tmp_path)
    assert (tmp_path / "run.json").exists()
    process.kill()
    process.wait()
    clear_folder(FakeRun(tmp_path, finished=False))
    assert os.listdir(tmp_path) == []
    clear_folder(FakeRun(tmp_path / "nowhere", finished=False))


def test_a_process_that_waited_for_the_lock_marks_the_folder_again(tmp_path, locking_process):
    process = locking_process(tmp_path, 1)
    waiter = locking_process(tmp_path, 60, until_locked=False)
    time.sleep(0.5)
    (tmp_path / ".running").unlink()  # as the first process does when it ends, while the second waits
    process.wait()
    assert waiter.stdout.readline() == b"locked\n"
    assert is_locked(tmp_path)


def test_only_the_folder_of_a_run_that_never_began_is_removed(tmp_path):
    for name in ("never_begun", "ended"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
    (tmp_path / "ended" / "runner.log").write_text("why")
    for name in ("never_begun", "ended", "nowhere"):
        remove_if_unused(tmp_path / name)
    assert os.listdir(tmp_path) == ["ended"]


def test_checking_a_lock_creates_no_files(tmp_path):
    folder = tmp_path / "sweep" / "run"
    folder.mkdir(parents=True)
    assert not is_locked(folder)
    assert not detect_death(folder)
    wait_until_free([folder, tmp_path / "nowhere" / "run"])
    assert [path.name for path in tmp_path.rglob("*")] == ["sweep", "run"]


def test_a_run_in_progress_has_a_mark_and_one_that_ended_has_none(tmp_path):
    folder = tmp_path / "sweep" / "run"
    folder.mkdir(parents=True)
    with locked(folder):
        assert os.listdir(folder) == [".running"]
        (folder / "run.json").touch()
    assert os.listdir(folder) == ["run.json"]
    assert [path.name for path in (tmp_path / "sweep" / ".locks").iterdir()] == ["run"]

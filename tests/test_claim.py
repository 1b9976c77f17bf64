"""A run's folder belongs to one living process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from runner.claim import begun, claimed, held, wait_until_free
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from runner.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen:
    """A process that holds the folder; returns when it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_folder_is_held_until_its_process_dies_and_says_then_that_a_run_began(tmp_path):
    assert not held(tmp_path)
    assert not begun(tmp_path)
    process = holder(tmp_path, 60)
    assert held(tmp_path)
    assert begun(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not held(tmp_path)
    assert begun(tmp_path)


def test_a_second_process_waits_for_the_first(tmp_path):
    process = holder(tmp_path, 1)
    with claimed(tmp_path):
        assert process.poll() is not None or process.wait(timeout=5) == 0


def test_waiting_for_a_folder_ends_with_its_process_or_with_the_time(tmp_path):
    process = holder(tmp_path, 60)
    start = time.monotonic()
    wait_until_free([tmp_path], seconds=0.2)
    assert held(tmp_path)
    assert time.monotonic() - start >= 0.2
    process.kill()
    process.wait()
    wait_until_free([tmp_path])
    assert not held(tmp_path)


def test_a_run_that_left_its_record_leaves_no_claim(tmp_path):
    with claimed(tmp_path):
        (tmp_path / "run.json").write_text("{}")
    assert not begun(tmp_path)
    assert os.listdir(tmp_path) == ["run.json"]

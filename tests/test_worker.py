"""A run of a sweep, in whichever process: carried out once, and on the accelerator of its process's slot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

TAKE = """
import sys
from pathlib import Path
from runner.worker import slot
print(slot(Path(".")), slot(Path(".")), flush=True)
sys.stdin.read()
"""


def taker() -> tuple[subprocess.Popen, str]:
    """A process that holds a slot until its input ends, and which one."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_each_process_has_a_slot_of_its_own_and_one_that_died_gives_it_back():
    processes, slots = zip(*(taker() for _ in range(3)), strict=True)
    assert slots == ("0 0", "1 1", "2 2")
    processes[1].kill()
    processes[1].wait()
    again, slot = taker()
    assert slot == "1 1"
    for process in (*processes, again):
        process.kill()
        process.communicate()


def test_a_run_that_another_process_has_ended_meanwhile_is_not_run_again(door, monkeypatch):
    """As when a launcher, having forgotten a run that is queued, is asked for it again."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    once = BasicLauncher.launch

    def twice(self, job_overrides, initial_job_idx):
        once(self, job_overrides, initial_job_idx)
        (record,) = Path("sweep").glob("*/run.json")
        stamp = record.stat().st_mtime_ns
        jobs = once(self, job_overrides, initial_job_idx)
        assert record.stat().st_mtime_ns == stamp
        return jobs

    monkeypatch.setattr(BasicLauncher, "launch", twice)
    assert door("-m", "model=mlp", "batches=2", "hydra.sweep.dir=sweep")[0] == 0

"""A worker carries out each run once, on the accelerator of its slot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.sweep import worker
from tests.conftest import ROOT

PRINT_SLOT = """
import sys
from pathlib import Path
from runner.sweep.worker import worker_slot
print(worker_slot(Path(".")), worker_slot(Path(".")), flush=True)
sys.stdin.read()
"""


def slot_process() -> tuple[subprocess.Popen, str]:
    """Start a process that has a slot until its stdin is closed; returns it and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT_SLOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_each_process_has_its_own_slot_and_the_slot_of_a_dead_process_is_reused():
    processes, slots = zip(*(slot_process() for _ in range(3)), strict=True)
    assert slots == ("0 0", "1 1", "2 2")
    processes[1].kill()
    processes[1].wait()
    again, slot = slot_process()
    assert slot == "1 1"
    for process in (*processes, again):
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "accelerators", "expected"), [(0, 2, 0), (1, 2, 1), (3, 2, 1), (2, 1, 0)])
def test_a_worker_selects_the_accelerator_of_its_slot(number, accelerators, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: accelerators)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(worker, "_own_slot", [(number, None)])
    worker.select_accelerator(Path("."))
    assert chosen == [expected]


def launch_everything_twice(monkeypatch, meanwhile) -> list[int]:
    """Make the launcher launch everything twice, as if it had lost track, and call `meanwhile` in between.

    Returns a list that gets an item for each launch.
    """
    from hydra.core.plugins import Plugins

    Plugins.instance()  # so that Hydra does not create the launchers' classes again
    launcher = sys.modules["hydra._internal.core_plugins.basic_launcher"].BasicLauncher
    once, calls = launcher.launch, []

    def twice(self, job_overrides, initial_job_idx):
        once(self, job_overrides, initial_job_idx)
        meanwhile()
        calls.append(1)
        return once(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(launcher, "launch", twice)
    return calls


@pytest.mark.long
@pytest.mark.parametrize("flag", ["", ".stop", ".interrupt"])
def test_a_run_that_is_launched_again_after_it_ended_does_not_change(cli, monkeypatch, flag):
    seen = []

    def meanwhile():
        (record,) = Path("sweep").glob("*/run.json")
        seen.append((record, record.stat().st_mtime_ns))
        if flag:
            Path("sweep", flag).touch()

    calls = launch_everything_twice(monkeypatch, meanwhile)
    assert cli("-m", "model=mlp", "batches=2", "hydra.sweep.dir=sweep")[0] == 0
    assert calls == [1]
    ((record, written_at),) = seen
    assert record.stat().st_mtime_ns == written_at
    assert (record.parent / "changes.csv").exists()

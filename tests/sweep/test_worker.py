"""A run of a sweep, in whichever process: carried out once, and on the accelerator of its process's slot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.sweep import worker
from tests.conftest import ROOT

TAKE = """
import sys
from pathlib import Path
from runner.sweep.worker import slot
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


@pytest.mark.parametrize(("number", "accelerators", "expected"), [(0, 2, 0), (1, 2, 1), (3, 2, 1), (2, 1, 0)])
def test_workers_share_the_accelerators_in_turn(number, accelerators, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: accelerators)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(worker, "_slot", [(number, None)])
    worker.take_accelerator(Path("."))
    assert chosen == [expected]


def launched_again(monkeypatch, meanwhile) -> list[int]:
    """Have the launcher asked for each run twice, as one that forgot what it has queued; `meanwhile` stands between."""
    from hydra.core.plugins import Plugins

    Plugins.instance()  # which makes the launchers' classes anew
    launcher = sys.modules["hydra._internal.core_plugins.basic_launcher"].BasicLauncher
    once, calls = launcher.launch, []

    def twice(self, job_overrides, initial_job_idx):
        once(self, job_overrides, initial_job_idx)
        meanwhile()
        calls.append(1)
        return once(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(launcher, "launch", twice)
    return calls


@pytest.mark.parametrize("flag", ["", ".stop", ".interrupt"])
def test_a_run_that_has_ended_meanwhile_is_not_run_again_and_loses_nothing(door, monkeypatch, flag):
    seen = []

    def meanwhile():
        (record,) = Path("sweep").glob("*/run.json")
        seen.append((record, record.stat().st_mtime_ns))
        if flag:
            Path("sweep", flag).touch()

    calls = launched_again(monkeypatch, meanwhile)
    assert door("-m", "model=mlp", "batches=2", "hydra.sweep.dir=sweep")[0] == 0
    assert calls == [1]
    ((record, stamp),) = seen
    assert record.stat().st_mtime_ns == stamp
    assert (record.parent / "changes.csv").exists()

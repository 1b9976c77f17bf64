"""Same seed, same bytes: `changes.csv` across repeats, processes, and a run alone or inside a sweep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from runner import run

CELL = ("method=zero_lr", "freeze=backbone", "model=mlp", "batches=4", "threads=1", "data=digits")


def test_changes_are_the_same_bytes_across_repeats_processes_and_sweeps(command):
    for name in ("once", "twice"):
        run(*CELL, f"hydra.run.dir={name}")
        torch.rand(7)  # what the process did before does not matter
    assert command(*CELL, "hydra.run.dir=elsewhere").returncode == 0
    assert command("-m", *CELL, "seed=1,0", "hydra.sweep.dir=sweep").returncode == 0
    (inside,) = Path("sweep").glob("*__s0__*")
    first = Path("once/changes.csv").read_bytes()
    for folder in (Path("twice"), Path("elsewhere"), inside):
        assert (folder / "changes.csv").read_bytes() == first


def test_a_run_leaves_the_random_state_and_the_threads_of_its_caller_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    run(*CELL)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("data", ["synthetic", "digits"])
def test_the_data_are_the_same_for_every_method_and_every_group_setting(data):
    Path("remembers.py").write_text(
        "from pathlib import Path\n"
        "from runner.training.tasks import Classification\n"
        "class Task(Classification):\n"
        "    def __call__(self, model, batch):\n"
        "        with Path('seen').open('ab') as file:\n"
        "            file.write(b''.join(part.numpy().tobytes() for part in batch))\n"
        "        return super().__call__(model, batch)\n"
    )
    seen = set()
    for method, groups in [("none", "role"), ("zero_lr", "one"), ("requires_grad", "parameter"), ("restore", "role")]:
        run(f"method={method}", f"groups={groups}", f"data={data}", "model=mlp", "batches=3", "task._target_=remembers.Task")
        seen.add(Path("seen").read_bytes())
        Path("seen").unlink()
    sys.modules.pop("remembers")
    assert len(seen) == 1

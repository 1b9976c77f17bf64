"""The same config and seed give the same bytes of `changes.csv`, in any process, alone or in a sweep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from runner import run

OVERRIDES = ("method=zero_lr", "freeze=backbone", "model=mlp", "batches=4", "threads=1", "data=digits")


@pytest.mark.long
def test_changes_csv_has_the_same_bytes_in_repeated_runs_other_processes_and_sweeps(cli_process):
    for name in ("once", "twice"):
        run(*OVERRIDES, f"hydra.run.dir={name}")
        torch.rand(7)  # the state of the random generator before the run must not matter
    assert cli_process(*OVERRIDES, "hydra.run.dir=elsewhere").returncode == 0
    assert cli_process("-m", *OVERRIDES, "seed=1,0", "hydra.sweep.dir=sweep").returncode == 0
    (inside,) = Path("sweep").glob("*__s0__*")
    first = Path("once/changes.csv").read_bytes()
    for folder in (Path("twice"), Path("elsewhere"), inside):
        assert (folder / "changes.csv").read_bytes() == first


def test_a_run_restores_the_random_state_and_the_number_of_threads():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    run(*OVERRIDES)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.long
@pytest.mark.parametrize("data", ["synthetic", "digits"])
def test_the_data_do_not_depend_on_method_and_groups(data):
    Path("saves_batches.py").write_text(
        "from pathlib import Path\n"
        "from runner.training.tasks.task import BatchTask\n"
        "class Task:\n"
        "    def __call__(self, model, batch):\n"
        "        with Path('batches.bin').open('ab') as file:\n"
        "            file.write(b''.join(part.numpy().tobytes() for part in batch))\n"
        "        return BatchTask()(model, batch)\n"
    )
    contents = set()
    for method, groups in [("none", "role"), ("zero_lr", "one"), ("requires_grad", "parameter"), ("restore", "role")]:
        run(
            f"method={method}",
            f"groups={groups}",
            f"data={data}",
            "model=mlp",
            "batches=3",
            "cost=off",  # counting calls the task too
            "task._target_=saves_batches.Task",
        )
        contents.add(Path("batches.bin").read_bytes())
        Path("batches.bin").unlink()
    sys.modules.pop("saves_batches")
    assert len(contents) == 1

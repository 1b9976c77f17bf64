"""Same seed, same bytes: `changes.csv` across repeats, processes, and a run alone or inside a sweep."""

from __future__ import annotations

from pathlib import Path

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


def test_the_data_are_the_same_for_every_method_and_every_group_setting():
    losses = set()
    for number, (method, groups) in enumerate([("none", "role"), ("zero_lr", "one"), ("requires_grad", "parameter")]):
        result = run(f"method={method}", f"groups={groups}", "model=mlp", "batches=1", f"hydra.run.dir={number}")
        losses.add(result.record["loss_first"])
    assert len(losses) == 1

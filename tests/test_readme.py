"""The examples of the README work, and its tables agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchvision

from runner import audit, run
from runner.methods.base import TRAPS
from tests.conftest import ROOT
from tests.test_conformance import METHODS, build_method

README = (ROOT / "README.md").read_text()


def test_the_example_method_keeps_frozen_parameters_out_of_the_optimizer_and_holds():
    (code,) = re.findall(r"```python\n# runner/methods/exclude.py\n(.*?)```", README, re.S)
    Path("example.py").write_text(code)
    result = run("method._target_=example.Exclude", "freeze=backbone", "model=mlp", "batches=3")
    assert result.verdict == "held"
    assert {row["group"] for row in result.rows if row["frozen"]} == {""}
    assert run("method._target_=example.Exclude", "freeze=none", "model=mlp", "batches=2").verdict == "held"


def test_the_example_of_audit_works_in_a_training_loop():
    (code,) = re.findall(r"```python\n(from runner import audit.*?)```", README, re.S)
    model = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def train(model, optimizer):
        model(torch.ones(1, 3, 64, 64)).sum().backward()
        optimizer.step()

    names = {"model": model, "optimizer": optimizer, "train": train, "audit": audit}
    exec(code, names)
    assert set(names["report"].frame.verdict) == {"held", "idle", "drifted"}


def test_the_table_of_methods_lists_the_traps_under_which_each_method_leaks():
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", README.split("## How\n")[1].split("## When")[0], re.M))
    assert rows.keys() == set(METHODS)
    for method, cell in rows.items():
        leaks = set(TRAPS) if cell.strip() == "everything" else set(re.findall(r"`(\w+)`", cell))
        assert leaks == build_method(method).leaks_under, method


def test_the_readme_lists_every_file_of_conf_freeze():
    (listed,) = re.findall(r"`freeze=([\w|]+)` are files", README)
    assert sorted(listed.split("|")) == sorted(path.stem for path in (ROOT / "conf" / "freeze").glob("*.yaml"))

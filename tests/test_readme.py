"""What the README shows does what it says."""

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


def test_the_method_that_the_readme_adds_holds_and_leaves_frozen_parameters_out():
    (code,) = re.findall(r"```python\n# runner/methods/exclude.py\n(.*?)```", README, re.S)
    Path("shown.py").write_text(code)
    result = run("method._target_=shown.Exclude", "freeze=backbone", "model=mlp", "batches=3")
    assert result.verdict == "held"
    assert {row["group"] for row in result.rows if row["frozen"]} == {""}
    assert run("method._target_=shown.Exclude", "freeze=none", "model=mlp", "batches=2").verdict == "held"


def test_the_audit_that_the_readme_shows_works_in_a_loop_of_ones_own():
    (code,) = re.findall(r"```python\n(from runner import audit.*?)```", README, re.S)
    model = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def train(model, optimizer):
        model(torch.ones(1, 3, 64, 64)).sum().backward()
        optimizer.step()

    names = {"model": model, "optimizer": optimizer, "train": train, "audit": audit}
    exec(code, names)
    assert set(names["report"].frame.verdict) == {"held", "idle", "drifted"}


def test_the_readme_says_of_each_method_under_which_traps_it_leaks():
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", README.split("## How\n")[1].split("## When")[0], re.M))
    assert rows.keys() == set(METHODS)
    for method, told in rows.items():
        leaks = set(TRAPS) if told.strip() == "everything" else set(re.findall(r"`(\w+)`", told))
        assert leaks == build_method(method).leaks_under, method


def test_the_readme_lists_every_choice_of_freeze():
    (listed,) = re.findall(r"`freeze=([\w|]+)` are files", README)
    assert sorted(listed.split("|")) == sorted(path.stem for path in (ROOT / "conf" / "freeze").glob("*.yaml"))

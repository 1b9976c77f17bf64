"""What the README shows does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchvision

from runner import audit, run
from tests.conftest import ROOT

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


def test_the_readme_lists_every_choice_of_freeze():
    (listed,) = re.findall(r"`freeze=([\w|]+)` are files", README)
    assert sorted(listed.split("|")) == sorted(path.stem for path in (ROOT / "conf" / "freeze").glob("*.yaml"))

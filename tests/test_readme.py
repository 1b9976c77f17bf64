"""The example of the README works, and what `.ci/run` takes out of it is there."""

from __future__ import annotations

import re

import torch
import torchvision

from runner import audit
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_first_example_begins_with_nothing_and_its_output_has_a_headline():
    lines = re.findall(r"```bash\n(.*?)```", README, re.S)[0].splitlines()
    assert lines[0].startswith("python3 -m venv .venv && ")
    assert all(line.startswith("python -m runner ") for line in lines[1:])
    assert re.search(r"^HELD", README, re.M)
    assert len(re.findall(r"^python3 -m venv \.venv && .*\.venv/bin/pytest$", README, re.M)) == 1


def test_the_example_of_audit_works_in_a_training_loop():
    (code,) = re.findall(r"```python\n(from runner import audit.*?)```", README, re.S)
    assert code in (ROOT / "docs" / "audit.md").read_text()
    model = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def train(model, optimizer):
        model(torch.ones(1, 3, 64, 64)).sum().backward()
        optimizer.step()

    names = {"model": model, "optimizer": optimizer, "train": train, "audit": audit}
    exec(code, names)
    assert set(names["report"].frame.verdict) == {"held", "idle", "drifted"}

"""The five lines for Accelerate, and those for Fabric, as `docs/integrations.md` has them."""

from __future__ import annotations

import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from runner import audit
from tests.conftest import ROOT

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
PAGE = (ROOT / "docs" / "integrations.md").read_text()


@pytest.fixture(autouse=True)
def _no_state_of_other_tests():
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the test before


def parts():
    """Return (a model whose first layer is frozen, an optimizer of all its parameters, a loader of 10 batches)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    data = TensorDataset(torch.randn(80, 4), torch.randint(2, (80,)))
    return model, torch.optim.AdamW(model.parameters(), 0.01), DataLoader(data, 8)


def verdicts(report) -> dict[str, str]:
    return {row["name"]: row["verdict"] for row in report.rows}


def test_the_lines_on_the_page_prove_a_training_by_accelerate(capsys):
    (code,) = re.findall(r"## Accelerate\n.*?```python\n(.*?)```", PAGE, re.S)
    model, optimizer, loader = parts()
    names = {"model": model, "optimizer": optimizer, "loader": loader, "loss_of": nn.functional.cross_entropy}
    exec(code, names)
    assert verdicts(names["report"]) == {"0.weight": "held", "0.bias": "held", "2.weight": "trained", "2.bias": "trained"}
    assert names["report"].looks == [1, 2, 4, 8]
    assert capsys.readouterr().out.startswith("held: 2 held, 2 trained")
    assert len(re.findall(r"  # \d", code)) == 5


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}], ids=str)
def test_accelerate_with_accumulation_and_mixed_precision(options):
    accelerator = Accelerator(cpu=True, **options)
    model, optimizer, loader = accelerator.prepare(*parts())
    with audit(accelerator.unwrap_model(model), optimizer=optimizer, until=4) as report:
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                report.follow_flags()
                optimizer.step()
                optimizer.zero_grad()
    report.raise_if_unsound()
    assert report.steps == 4


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    net, optimizer, loader = parts()
    model, optimizer = fabric.setup(net, optimizer)
    with audit(net, optimizer=optimizer, until=4) as report:
        for x, y in fabric.setup_dataloaders(loader):
            fabric.backward(nn.functional.cross_entropy(model(x), y))
            report.follow_flags()
            optimizer.step()
            optimizer.zero_grad()
    report.raise_if_unsound()
    assert verdicts(report)["0.weight"] == "held"

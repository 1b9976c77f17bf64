"""What a plan says about costs: the same as a run, for each phase, and before any weight exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runner.display.units import bytes_text, flops_text, percent_text


def cost_rows(out: str) -> list[list[str]]:
    """Return the cells of the table of costs in a plan's output: steps, FLOPs, cost, saved, gradients."""
    lines = out.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("steps "))
    end = next(number for number, line in enumerate(lines) if line.startswith("cost: the FLOPs of a step"))
    return [re.split(r"\s{2,}", line) for line in lines[begin + 1 : end]]


@pytest.mark.parametrize("method", ["requires_grad", "zero_lr", "detach", "to_buffer", "cached_prefix", "none"])
def test_a_plan_predicts_the_flops_and_bytes_that_a_run_counts(method, cli):
    settings = ("model=mlp", "freeze=backbone", f"method={method}", "batches=4")
    code, out, _ = cli("plan=true", *settings)
    assert code == 0
    assert cli(*settings, "hydra.run.dir=run")[0] == 0
    cost = json.loads(Path("run/run.json").read_text())["cost"]
    (row,) = cost_rows(out)
    assert row[0] == "1-4"
    assert row[1:3] == [flops_text(cost["flops_forward"] + cost["flops_backward"]), percent_text(cost["flops_share"])]
    assert row[3:] == [bytes_text(cost["saved_bytes"]), bytes_text(cost["gradient_bytes"])]


def test_a_plan_has_the_costs_of_each_phase_and_says_what_always_trains(cli):
    _, out, _ = cli("plan=true", "model=mlp", "freeze=backbone", "schedule=after", "schedule.step=4", "batches=9")
    assert [(row[0], row[2]) for row in cost_rows(out)] == [("1-3", "100%"), ("4-9", "42%")]
    assert "330 of 3,562 weights are trained in every step (9.3%)" in out


def test_a_plan_needs_no_weights(cli):
    Path("mine.py").write_text(
        "from torch import nn\n"
        "class Huge(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Linear(64, 400_000), nn.Linear(400_000, 400_000), nn.Linear(400_000, 10))\n"
    )
    model = ("model=custom", "model.build._target_=mine.Huge", "model.input=[64]", "model.classes=10", "freeze=backbone")
    code, out, _ = cli("plan=true", *model)
    assert code == 0
    (row,) = cost_rows(out)
    forward = 2 * 4 * (64 * 400_000 + 400_000 * 400_000 + 400_000 * 10)
    assert row[1] == flops_text(forward + 2 * 4 * 400_000 * 10)
    assert "4,000,010 of 160,030,400,010 weights are trained in every step" in out
    assert "hazards are not foreseen: that needs the weights, which take 596.2 GiB" in out


def test_a_builder_that_needs_values_is_planned_with_the_model_itself(cli):
    Path("mine.py").write_text(
        "import torch, runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        "        self.scale = float(torch.linspace(0, 1, 3)[1].item())\n"
    )
    _, expected, _ = cli("plan=true", "model=mlp", "freeze=backbone")
    code, out, err = cli("plan=true", "model=mlp", "freeze=backbone", "model.build._target_=mine.Net")
    assert code == 0
    assert cost_rows(out) == cost_rows(expected)
    assert err == ""


def test_a_plan_with_cost_off_has_no_costs(cli):
    _, out, _ = cli("plan=true", "model=mlp", "cost=off")
    assert "FLOP" not in out
    assert "parameters would be frozen" in out


def test_a_plan_names_operators_whose_flops_are_not_known(cli):
    Path("mine.py").write_text(
        "import torch, runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x @ torch.linalg.matrix_exp(torch.eye(x.shape[1])))\n"
    )
    _, out, _ = cli("plan=true", "model=mlp", "model.build._target_=mine.Net")
    assert cost_rows(out)[0][1] == "unknown"
    assert "no formula for the FLOPs of aten::linalg_matrix_exp" in out


def test_what_a_module_makes_when_it_is_imported_has_values_in_a_plan(cli):
    Path("mine.py").write_text(
        "import torch, runner.training.models, runner.training.tasks\n"
        "MEAN, WEIGHT = torch.tensor(0.5), torch.ones(10)\n"
        "class Net(runner.training.models.MLP):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        "        self.load_state_dict(runner.training.models.MLP(**options).state_dict())\n"
        "    def forward(self, x): return super().forward(x - MEAN)\n"
        "class Task:\n"
        "    def __call__(self, model, batch):\n"
        "        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], WEIGHT)\n"
    )
    mine = ("model.build._target_=mine.Net", "task=custom", "task._target_=mine.Task")
    code, out, err = cli("plan=true", "model=mlp", "freeze=backbone", *mine)
    assert (code, err) == (0, "")
    assert cost_rows(out)[0][2] == "42%"
    assert "hazard: buffers of BatchNorm1d norm will change" in out


def test_a_plan_says_that_a_method_may_skip_layers_in_later_epochs(cli):
    settings = ("plan=true", "model=mlp", "freeze=backbone", "freeze.buffers=frozen", "data.epochs=2", "batches=4")
    sentence = "where the method skips layers in later epochs, a step costs less than that"
    assert sentence in cli(*settings, "method=cached_prefix")[1]
    assert sentence not in cli(*settings, "method=requires_grad")[1]


def test_a_model_that_cannot_be_counted_is_planned_without_costs(cli):
    Path("mine.py").write_text(
        "import torch, runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def forward(self, x):\n"
        "        if torch.utils._python_dispatch._get_current_dispatch_mode(): raise KeyError('no modes')\n"
        "        return super().forward(x)\n"
    )
    code, out, _ = cli("plan=true", "model=mlp", "model.build._target_=mine.Net", "freeze=backbone")
    assert code == 0
    assert "costs are not known: KeyError: 'no modes'" in out
    assert "hazard: buffers of BatchNorm1d norm will change" in out

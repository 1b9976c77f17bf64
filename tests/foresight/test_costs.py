"""What a plan says about costs: the same as a run, for each phase, and before any weight exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.cost.copies import count_step
from runner.display.units import bytes_text, flops_text, percent_text
from runner.foresight import costs
from runner.foresight.costs import MOST_ROWS, trained_text
from runner.freezing.schedule import Phase, Plan
from runner.freezing.selection import Selection


def cost_rows(out: str) -> list[list[str]]:
    """Return the cells of the table of costs in a plan's output: steps, FLOPs, cost, saved, gradients.

    With several phases, what trains comes after the steps.
    """
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
    rows = [(row[0], row[1], row[3]) for row in cost_rows(out)]
    assert rows == [("1-3", "9 of 9 parameters", "100%"), ("4-9", "2 of 9 parameters", "42%")]
    assert "over the run: 62% of the FLOPs of training everything" in out  # (3 * 100% + 6 * 42.3%) / 9
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


# Timetables of blocks

SCHEDULES = """
from runner.freezing.schedule import Phase, Plan
from runner.freezing.phases.restriction import restricted

BLOCKS = {
    "body": ("body.weight", "body.bias"),
    "norm": ("norm.weight", "norm.bias"),
    "tied": ("there.weight", "there.bias", "back.bias"),
}


def training(first, selection, run, blocks, factors=None):
    # A phase in which some of the blocks train.
    frozen = {name for block, names in BLOCKS.items() if block not in blocks for name in names}
    return Phase(first, restricted(selection, run.model, frozen), factors=factors or {})


def in_turn(selection, run, every=1):
    # One block after the other.
    names = [list(BLOCKS)[place % 3] for place in range(-(-run.steps // every))]
    return Plan([training(1 + every * i, selection, run, [name]) for i, name in enumerate(names)], BLOCKS)


def from_the_head(selection, run):
    # Each block of the earlier ones at half the rate, and the last one at a rate that falls in each step.
    last = {"body": lambda step: 1 / step, "norm": 0.5}
    return Plan(
        [
            training(1, selection, run, []),
            training(3, selection, run, ["tied"]),
            training(5, selection, run, ["tied", "norm"], {"norm": 0.5}),
            training(7, selection, run, ["tied", "norm", "body"], last),
        ],
        BLOCKS,
    )


def as_it_goes(selection, run):
    # All blocks at first; then the first one is frozen.
    later = training(1, selection, run, ["norm", "tied"])
    return Plan([training(1, selection, run, BLOCKS)], BLOCKS, window=3, observe=lambda step, values: later)
"""


def of_blocks(name: str, *more: str) -> tuple[str, ...]:
    """Write the schedules into the current folder, and return the overrides for one of them."""
    Path("blocks.py").write_text(SCHEDULES)
    return ("model=mlp", "freeze=backbone", "schedule=custom", f"schedule._target_=blocks.{name}", *more)


def test_a_timetable_shows_which_blocks_train_and_the_factors_of_their_rates(cli):
    code, out, _ = cli("plan=true", *of_blocks("from_the_head", "batches=8"))
    assert code == 0
    assert [row[:-4] for row in cost_rows(out)] == [
        ["1-2", "no block"],
        ["3-4", "tied"],
        ["5-6", "norm and tied", "0.5 to 1"],
        ["7-8", "all blocks", "0.125 to 1"],
    ]
    assert "trains: which blocks of the schedule do; factor: what their scheduled learning rates are multiplied by" in out
    assert "330 of 3,562 weights are trained in every step" in out


SCHEDULES_OF_BLOCKS = ["gradual", "linear_probe_then_finetune", "freeze_out", "block_coordinate"]


@pytest.mark.parametrize("name", ["from_the_head", "in_turn", *SCHEDULES_OF_BLOCKS])
def test_the_sum_over_the_run_is_what_the_run_is_metered_to_cost(name, cli):
    settings = of_blocks(name, "batches=8")
    if name in SCHEDULES_OF_BLOCKS:
        settings = ("model=mlp", "freeze=backbone", f"schedule={name}", "batches=8")
    out = cli("plan=true", *settings)[1]
    assert cli(*settings, "hydra.run.dir=run")[0] == 0
    cost = json.loads(Path("run/run.json").read_text())["cost"]
    assert f"over the run: {percent_text(cost['flops_share'])} of the FLOPs of training everything" in out
    assert bytes_text(cost["saved_bytes"]) in {row[-2] for row in cost_rows(out)}


def test_of_many_phases_the_first_are_shown_and_each_distinct_set_is_counted_once(cli, monkeypatch):
    counted = []
    monkeypatch.setattr(costs, "count_step", lambda *args: counted.append(args) or count_step(*args))
    code, out, _ = cli("plan=true", *of_blocks("in_turn", "batches=300"))
    assert code == 0
    rows = cost_rows(out)
    assert len(rows) == MOST_ROWS
    assert [row[:2] for row in rows[:4]] == [["1", "body"], ["2", "norm"], ["3", "tied"], ["4", "body"]]
    shares = sorted({row[3] for row in rows}, key=lambda text: int(text[:-1]))
    assert f"280 more phases follow, to step 300, in which a step costs {shares[0]} to {shares[-1]}" in " ".join(out.split())
    assert len(counted) == 3 + 1  # and once with nothing frozen


def test_a_plan_of_a_schedule_that_decides_during_the_run_prices_how_it_begins(cli):
    code, out, _ = cli("plan=true", *of_blocks("as_it_goes", "batches=9"))
    assert code == 0
    (row,) = cost_rows(out)
    assert row[:2] == ["from 1", "all blocks"]
    text = " ".join(out.split())
    assert "phases are found during the run: the schedule is asked after every 3 steps; this is how it begins" in text
    assert "over the run" not in out
    assert "330 of 3,562 weights are trained in every step" in out  # any block may be frozen later


def test_what_trains_is_said_in_few_words():
    names = {f"layer{number}": (f"layer{number}.weight",) for number in range(1, 7)}

    def text(trained: str) -> str:
        frozen = {f"layer{number}.weight": None for number in range(1, 7) if str(number) not in trained}
        return trained_text(SimpleNamespace(plan=Plan([], names)), Phase(1, Selection(frozen)))

    assert text("") == "no block"
    assert text("4") == "layer4"
    assert text("34") == "layer3 and layer4"
    assert text("3456") == "layer3 to layer6"
    assert text("135") == "layer1, layer3 and layer5"
    assert text("1356") == "layer1, layer3 and 2 more"
    assert text("123456") == "all blocks"

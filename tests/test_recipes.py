"""The recipes of `conf/experiment`, most of which reproduce an article about freezing: what each one freezes and trains."""

from __future__ import annotations

import json

import pytest
import torch
from torchvision.models import resnet18

from runner import run
from runner.config.compose import compose_config
from runner.config.schema import CONF

RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture
def run_recipe():
    """Return a function that runs a recipe for three batches."""
    return lambda name, *overrides: run(f"experiment={name}", "batches=3", "hydra.run.dir=here", *overrides)


def unchanged_parameters(result, classes=1000):
    """Return the names of the parameters that are still, bit by bit, those of the model that is built with seed 0."""
    torch.manual_seed(0)
    fresh = dict(resnet18(num_classes=classes).named_parameters())
    return [name for name, parameter in result.model.named_parameters() if torch.equal(parameter, fresh[name])]


def names_where(result, **columns):
    """Return the names of the tensors whose row has these values."""
    return [row["name"] for row in result.rows if all(row[key] == value for key, value in columns.items())]


def test_freeze_one_freezes_one_weight_and_trains_all_others(run_recipe):
    result = run_recipe("freeze_one", "model.input=[3,64,64]")
    assert names_where(result, requires_grad=False, kind="parameter") == ["fc.weight"]
    assert names_where(result, verdict="held") == names_where(result, moved=False) == ["fc.weight"]
    assert len(names_where(result, verdict="trained")) == 61
    assert len(names_where(result, verdict="drifted")) == 60
    assert unchanged_parameters(result) == ["fc.weight"]


@pytest.mark.long
def test_freeze_all_trains_nothing_and_writes_a_note(run_recipe):
    result = run_recipe("freeze_all", "model.input=[3,64,64]")
    assert len(names_where(result, verdict="held", requires_grad=False)) == 62
    assert names_where(result, moved=True, kind="parameter") == []
    assert "every parameter is declared frozen: nothing trains" in result.record["notes"]
    assert result.verdict == "held"
    assert len(unchanged_parameters(result)) == 62


def test_evaluate_only_measures_a_checkpoint_and_changes_no_bit_of_it():
    small = ("model=mlp", "data=digits", "data.holdout=0.5")
    trained = run(*small, "freeze=none", "batches=20", "evaluate=true", "save=true", "hydra.run.dir=trained")
    result = run("experiment=evaluate_only", *small, "model.checkpoint=trained/model.safetensors", "hydra.run.dir=measured")
    assert result.record["evaluation"]["after"] == trained.record["evaluation"]["after"]
    assert result.record["evaluation"]["before"] == result.record["evaluation"]["after"]
    assert not any(row["moved"] for row in result.rows)
    assert result.verdict == "held"


def test_train_conv1_and_fc_trains_exactly_these_two_weights(run_recipe):
    result = run_recipe("train_conv1_and_fc")
    assert names_where(result, kind="parameter", moved=True) == ["conv1.weight", "fc.weight"]
    assert names_where(result, kind="parameter", requires_grad=True) == ["conv1.weight", "fc.weight"]
    assert len(names_where(result, verdict="held")) == 60
    assert unchanged_parameters(result) == [
        name for name in parameter_names(result) if name not in ("conv1.weight", "fc.weight")
    ]
    shapes = {row["name"]: row["shape"] for row in result.rows}
    assert shapes["fc.weight"] == "1000x512"


def test_module_groups_trains_two_groups_and_the_other_parameters_are_idle_though_they_have_gradients(run_recipe):
    result = run_recipe("module_groups", "model.input=[3,64,64]")
    groups = {(row["group"], row["lr"]) for row in result.rows}
    assert groups == {("conv1", 0.3), ("fc", 0.4), ("", None)}
    assert names_where(result, verdict="trained") == ["conv1.weight", "fc.weight", "fc.bias"]
    idle = names_where(result, verdict="idle", cause="not_in_optimizer", requires_grad=True, moved=False)
    assert len(idle) == 59
    gradients = {name: parameter.grad for name, parameter in result.model.named_parameters()}
    assert all(gradients[name] is not None and gradients[name].any() for name in idle)
    assert names_where(result, frozen=True) == []
    assert unchanged_parameters(result) == idle


def test_zero_lr_fc_has_one_group_for_each_parameter_and_fc_weight_keeps_every_bit(run_recipe):
    result = run_recipe("zero_lr_fc", "save=true")
    names = [row["name"] for row in result.rows if row["kind"] == "parameter"]
    assert [row["group"] for row in result.rows if row["kind"] == "parameter"] == names
    assert len(names) == 62
    assert names_where(result, lr=0.0) == names_where(result, verdict="held") == ["fc.weight"]
    assert len(names_where(result, lr=0.1, verdict="trained")) == 61
    assert unchanged_parameters(result) == ["fc.weight"]


def test_digits_trains_the_head_of_a_resnet_on_half_of_the_digits_and_tests_it_on_the_others(run_recipe):
    result = run_recipe("digits", "model.input=[3,8,8]", "cost=off")
    assert names_where(result, verdict="trained") == ["fc.weight", "fc.bias"]
    assert len(names_where(result, verdict="held")) == 60
    record = json.loads((result.folder / "run.json").read_text())
    assert set(record["evaluation"]) == {"before", "after"}


def test_gradual_unfreezing_thaws_one_more_block_of_a_resnet_in_each_pass():
    small = ("model.input=[3,8,8]", "data.batch_size=8", "cost=off", "evaluate=false", "batches=2")
    result = run("experiment=gradual_unfreezing", *small)
    assert result.verdict == "held"
    assert [phase["first_step"] for phase in result.record["phases"]] == [1, 3, 5, 7, 9, 11]
    thawed = [[block["name"] for block in phase["blocks"] if not block["frozen"]] for phase in result.record["phases"]]
    blocks = ["conv1..bn1", "layer1", "layer2", "layer3", "layer4"]
    assert thawed == [blocks[5 - number :] for number in range(6)]


def parameter_names(result):
    """Return the names of all parameters of the model."""
    return [row["name"] for row in result.rows if row["kind"] == "parameter"]


@pytest.mark.parametrize(
    ("name", "input", "batch_size"), [("train_conv1_and_fc", [3, 128, 128], 1), ("zero_lr_fc", [3, 256, 256], 1)]
)
def test_the_recipe_has_the_input_size_and_batch_size_of_the_article(name, input, batch_size):
    config = compose_config(f"experiment={name}")
    assert (config.model.input, config.data.batch_size, config.model.classes) == (input, batch_size, 1000)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_test_above(name):
    assert any(key.startswith(f"test_{name}_") for key in globals())

"""The recipes of conf/experiment: the article this project grew from, each with its outcome on bits."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

from runner import run
from runner.config.compose import compose_config
from runner.config.schema import CONF

RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture
def recipe(request):
    """Run a recipe for three batches."""
    return lambda name, *more: run(f"experiment={name}", "batches=3", "hydra.run.dir=here", *more)


def same_bits_as_built(result, classes=1000):
    """The names of the parameters that still are, bit by bit, those of the model that seed 0 builds."""
    torch.manual_seed(0)
    fresh = dict(resnet18(num_classes=classes).named_parameters())
    return [name for name, parameter in result.model.named_parameters() if torch.equal(parameter, fresh[name])]


def named(result, **wanted):
    return [row["name"] for row in result.rows if all(row[key] == value for key, value in wanted.items())]


def test_freeze_one_stops_one_weight_and_trains_all_others(recipe):
    result = recipe("freeze_one", "model.input=[3,64,64]")
    assert named(result, requires_grad=False, kind="parameter") == ["fc.weight"]
    assert named(result, verdict="held") == named(result, moved=False) == ["fc.weight"]
    assert len(named(result, verdict="trained")) == 61
    assert len(named(result, verdict="drifted")) == 60
    assert same_bits_as_built(result) == ["fc.weight"]


def test_freeze_all_trains_nothing_and_says_so(recipe):
    result = recipe("freeze_all", "model.input=[3,64,64]")
    assert len(named(result, verdict="held", requires_grad=False)) == 62
    assert named(result, moved=True, kind="parameter") == []
    assert result.record["notes"] == ["every parameter is declared frozen: nothing trains"]
    assert result.verdict == "held"
    assert len(same_bits_as_built(result)) == 62


def test_train_conv1_and_fc_moves_just_these_two(recipe):
    result = recipe("train_conv1_and_fc")
    assert named(result, kind="parameter", moved=True) == ["conv1.weight", "fc.weight"]
    assert named(result, kind="parameter", requires_grad=True) == ["conv1.weight", "fc.weight"]
    assert len(named(result, verdict="held")) == 60
    assert same_bits_as_built(result) == [name for name in names(result) if name not in ("conv1.weight", "fc.weight")]
    shapes = {row["name"]: row["shape"] for row in result.rows}
    assert shapes["fc.weight"] == "1000x512"


def test_module_groups_steps_two_groups_and_leaves_every_other_parameter_idle_with_its_gradient(recipe):
    result = recipe("module_groups", "model.input=[3,64,64]")
    groups = {(row["group"], row["lr"]) for row in result.rows}
    assert groups == {("conv1", 0.3), ("fc", 0.4), ("", None)}
    assert named(result, verdict="trained") == ["conv1.weight", "fc.weight", "fc.bias"]
    idle = named(result, verdict="idle", cause="not_in_optimizer", requires_grad=True, moved=False)
    assert len(idle) == 59
    gradients = {name: parameter.grad for name, parameter in result.model.named_parameters()}
    assert all(gradients[name] is not None and gradients[name].any() for name in idle)
    assert named(result, frozen=True) == []
    assert same_bits_as_built(result) == idle


def test_zero_lr_fc_has_a_group_a_parameter_and_fc_weight_keeps_every_bit(recipe):
    result = recipe("zero_lr_fc", "save=true")
    names = [row["name"] for row in result.rows if row["kind"] == "parameter"]
    assert [row["group"] for row in result.rows if row["kind"] == "parameter"] == names
    assert len(names) == 62
    assert named(result, lr=0.0) == named(result, verdict="held") == ["fc.weight"]
    assert len(named(result, lr=0.1, verdict="trained")) == 61
    assert same_bits_as_built(result) == ["fc.weight"]


def names(result):
    return [row["name"] for row in result.rows if row["kind"] == "parameter"]


@pytest.mark.parametrize(
    ("name", "input", "batch_size"), [("train_conv1_and_fc", [3, 128, 128], 1), ("zero_lr_fc", [3, 256, 256], 1)]
)
def test_a_recipe_declares_the_sizes_of_the_article(name, input, batch_size):
    config = compose_config(f"experiment={name}")
    assert (config.model.input, config.data.batch_size, config.model.classes) == (input, batch_size, 1000)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_test_above(name):
    assert any(key.startswith(f"test_{name}_") for key in globals())

"""The price of a step: counted by hand, equal to what a run records, measured for each frozen set that it names."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from runner import price, run, select
from runner.contract import COUNTED
from runner.errors import ConfigError


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def batch():
    return torch.randn(5, 8), torch.randint(0, 4, (5,))


def forward_flops(*sizes: int) -> int:
    """The FLOPs of linear layers of these sizes on 5 samples, counted by hand."""
    return sum(2 * 5 * own * following for own, following in pairwise(sizes))


def test_flops_and_bytes_are_those_of_a_count_by_hand():
    cost = price(mlp(), batch(), frozen=["0", "2"]).cost
    assert cost["flops_forward"] == forward_flops(8, 16, 16, 4)
    assert cost["flops_backward"] == 2 * 5 * 16 * 4  # the gradient of the last weight alone
    assert cost["gradient_bytes"] == 4 * (16 * 4 + 4)
    everything = forward_flops(8, 16, 16, 4) * 2 + forward_flops(16, 16, 4)  # no gradient of the input is needed
    assert price(mlp(), batch()).cost["flops_backward"] == everything - forward_flops(8, 16, 16, 4)
    assert cost["flops_share"] == (cost["flops_forward"] + cost["flops_backward"]) / everything


@pytest.mark.parametrize("freeze", ["backbone", "head"])
def test_the_price_is_what_a_run_of_the_same_model_records(freeze):
    result = run("model=mlp", f"freeze={freeze}", "data.batch_size=4", "batches=1")
    width = next(module for module in result.model.modules() if isinstance(module, nn.Linear)).in_features
    like = torch.randn(4, width), torch.zeros(4, dtype=torch.long)
    names = [row["name"] for row in result.rows if row["frozen"] and row["kind"] == "parameter"]
    cost = price(result.model, like, frozen=names).cost
    for key in (*(key for key in COUNTED if key != "optimizer_state_bytes"), "flops_share", "flops_backward_share"):
        assert cost[key] == result.record["cost"][key], key


def test_pricing_changes_nothing():
    model = resnet18(num_classes=4)
    model.fc.requires_grad_(False)
    model.eval()
    x = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    before, flags = copy.deepcopy(model.state_dict()), [each.requires_grad for each in model.parameters()]
    random_state = torch.get_rng_state()
    price(model, x, frozen=["layer1"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [each.requires_grad for each in model.parameters()] == flags
    assert all(each.grad is None for each in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_each_saving_is_what_freezing_its_patterns_costs_and_the_three_largest_are_named():
    model = resnet18(num_classes=4)
    x = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    found = price(model, x)
    assert len(found.savings) == 3
    assert found.savings[0].patterns == ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    for saving in found.savings:
        own = price(model, x, frozen=list(saving.patterns))
        assert own.cost["flops_share"] == saving.flops_share
        assert own.cost["saved_bytes_share"] == saving.saved_bytes_share
    assert [each.flops_share for each in found.savings] == sorted(each.flops_share for each in found.savings)


def test_a_saving_leaves_what_the_flags_freeze_frozen_and_something_to_train():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    for frozen in (1, 3):
        model[frozen].requires_grad_(False)
    found = price(model, (torch.randn(5, 8), torch.randint(0, 8, (5,))))
    assert found.savings
    for saving in found.savings:
        own = price(model, (torch.randn(5, 8), torch.randint(0, 8, (5,))), frozen=list(saving.patterns))
        assert own.cost["flops_share"] == saving.flops_share
        assert own.trains[0] > 0


def test_a_frozen_set_that_saves_as_much_as_any_has_no_saving_to_name():
    assert price(mlp(), batch(), frozen=["0", "2"]).savings == ()


def test_flags_count_as_frozen_and_patterns_are_added_to_them():
    model = mlp()
    by_patterns = price(model, batch(), frozen=["0", "2"])
    model[0].requires_grad_(False)
    assert price(model, batch(), frozen=["2"]).cost == by_patterns.cost
    assert price(model, batch(), frozen=select(model, ["2"])).cost == by_patterns.cost
    model[2].requires_grad_(False)
    assert price(model, batch()).cost == by_patterns.cost


def test_why_a_step_is_no_faster_and_memory_did_not_fall_is_answered():
    model = mlp()
    optimizer = Adam(model.parameters())
    nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
    optimizer.step()
    model[4].requires_grad_(False)
    found = price(model, batch(), optimizer=optimizer)
    assert "no faster: the frozen part is at the end: backward still runs through it" in str(found)
    assert f"{4 * (16 * 4 + 4)} B of gradients and" in str(found)
    assert "of optimizer state of frozen parameters are still there" in str(found)
    assert found.cost["frozen_optimizer_state_bytes"] == 4 * 2 * (16 * 4 + 4) + 2 * 4  # and a step counter for each
    assert len(str(found).splitlines()) < 10
    optimizer.zero_grad()
    assert "of gradients" not in str(price(model, batch(), optimizer=optimizer))


def test_a_task_stands_in_place_of_a_loss_and_both_give_the_same():
    by_task = price(mlp(), batch(), task=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
    assert by_task.cost == price(mlp(), batch(), nn.CrossEntropyLoss()).cost == price(mlp(), batch()).cost


def test_an_optimizer_without_state_has_no_bytes_of_state():
    model = mlp()
    assert price(model, batch(), optimizer=SGD(model.parameters(), lr=0.1)).cost["optimizer_state_bytes"] is None


def test_everything_frozen_has_no_backward_pass():
    cost = price(mlp(), batch(), frozen=["**"]).cost
    assert (cost["flops_backward"], cost["gradient_bytes"]) == (0, 0)


@pytest.mark.long
def test_the_example_of_the_docs_prints_what_they_show(capsys):
    text = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    (code,), (shown,) = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("python", "text"))
    exec(compile(code, "costs.md", "exec"), {})
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frozen": ["fc"]}, "'fc' matches no parameter"),
        ({"frozen": "0"}, "is one pattern where a list is expected"),
        ({"model": None}, "model is a NoneType; give a torch.nn.Module"),
        ({"batch": torch.randn(5, 8)}, "the model returned a tensor of shape"),
        ({"loss": ["0"]}, r"loss is \['0'\]; give a function \(output, target\) or None; patterns are frozen="),
        ({"loss": nn.CrossEntropyLoss}, r"loss is the class CrossEntropyLoss; give an object of it, CrossEntropyLoss\(\)"),
        ({"loss": nn.MSELoss(), "task": lambda model, batch: model(batch[0]).sum()}, "not both"),
        ({"task": "mse"}, r"task is 'mse'; give a function \(model, batch\) -> loss"),
        ({"optimizer": "adam"}, "optimizer is a str; give one torch optimizer"),
        ({"optimizer": [SGD(mlp().parameters(), lr=0.1)]}, "optimizer is a list; give one torch optimizer"),
    ],
)
def test_a_mistake_is_answered_with_one_line(arguments, message):
    options = {"model": mlp(), "batch": batch(), **arguments}
    with pytest.raises(ConfigError, match=message) as caught:
        price(options.pop("model"), options.pop("batch"), **options)
    assert "\n" not in str(caught.value)


def test_a_saving_is_written_as_the_argument_that_gives_it():
    model, like = mlp(), batch()
    line = str(price(model, like).savings[0])
    share, arguments = line.split(" with ")
    found = eval(f"dict({arguments})")
    assert price(model, like, **found).cost["flops_share"] == pytest.approx(float(share.strip("% ")) / 100, abs=0.006)


@pytest.mark.parametrize(
    ("frozen", "text"),
    [
        (["0", "1", "2"], "75% of the weights are frozen, 45% of the FLOPs are left: forward still computes them\n"),
        (["0"], ""),
        ([], ""),
    ],
)
def test_a_saving_that_is_less_than_the_frozen_share_of_the_weights_is_explained(frozen, text):
    model, like = nn.Sequential(*(nn.Linear(9, 9) for _ in range(4))), (torch.randn(4, 9), torch.randn(4, 9))
    found = price(model, like, nn.MSELoss(), frozen=frozen)
    said = str(found)
    assert ("of the weights are frozen" in said) == bool(text)
    assert text in f"{said}\n"


def adapted() -> nn.Sequential:
    """A small layer that trains, as an adapter does, in front of wide ones that are frozen."""
    wide = [nn.Linear(256, 256) for _ in range(3)]
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 256), *wide)
    for layer in wide:
        layer.requires_grad_(False)
    return model


def test_why_backward_and_its_memory_cost_much_though_nearly_all_is_frozen_is_said():
    found = price(adapted(), (torch.randn(5, 8), torch.zeros(5, dtype=torch.long)))
    assert found.why_small == ""
    assert found.why_cost == "the frozen part is at the end: backward still runs through it"
    assert f"67% of the FLOPs are left: forward still computes them; {found.why_cost}" in str(found)
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4)))
    found = price(layers, (torch.randn(99, 64), torch.zeros(99, dtype=torch.long)), frozen=["1", "2", "3"])
    share = f"{found.cost['saved_bytes_share']:.0%}"
    assert f"memory fell little: {share} of the activations are still saved ({found.why_cost})" in str(found)


def test_forward_passes_of_frozen_layers_that_checkpointing_makes_again_are_said():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = checkpoint(layer, x, use_reentrant=False)
            return x

    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    found = price(Checkpointed(*layers), (torch.randn(5, 8), torch.zeros(5, dtype=torch.long)), frozen=["1"])
    assert found.why_slower == ("checkpointing makes forward passes of frozen layers again in backward, for 640 FLOP",)


def test_what_makes_a_step_slower_than_its_flops_is_said():
    model = mlp()
    model[0].register_forward_hook(lambda *args: None)
    found = price(model, batch(), frozen=["0"])
    assert found.why_slower == ("hooks on 0 run in each step",)
    assert "slower than its FLOPs: hooks on 0 run in each step" in str(found)

"""The FLOPs and bytes of a step: the same with and without values, and counted without changing the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vit_b_16

from runner.cost.copies import ModelCopy, count_step
from runner.cost.flops import META, REAL, run_and_count
from runner.freezing.selection import select
from runner.training.models import MLP, TokenMLP
from runner.training.tasks.task import BatchTask

MIB = 2**20


def batch(*shape: int, classes: int = 10, size: int = 8):
    return torch.randn(size, *shape), torch.randint(classes, (size,))


def frozen(model: nn.Module, *patterns: str) -> nn.Module:
    for parameter in select(model, patterns).parameters.values():
        parameter.requires_grad_(False)
    return model


def test_the_counts_of_resnet18_are_those_known():
    model, one = resnet18(), batch(3, 128, 128, classes=1000)
    whole_step = count_step(model, BatchTask(), one)
    assert whole_step.counted_on == META
    assert round((whole_step.flops_forward + whole_step.flops_backward) / 1e9, 2) == 27.83
    assert round(whole_step.saved_bytes / MIB, 1) == 57.3
    assert round(whole_step.gradient_bytes / MIB, 1) == 44.6
    head = count_step(frozen(model, "conv1", "bn1", "layer*"), BatchTask(), one)
    assert round((head.flops_forward + head.flops_backward) / 1e9, 2) == 9.49
    assert head.saved_bytes < 0.1 * MIB


def test_the_counts_of_two_linear_layers_agree_with_a_hand_count():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False))
    one = count_step(model, lambda model, x: model(x).sum(), torch.zeros(3, 6))
    products = 2 * 3 * (6 * 5 + 5 * 4)
    assert one.flops_forward == products
    assert one.flops_backward == products + 2 * 3 * 5 * 4  # of both weights, and of the activation between them
    assert one.gradient_bytes == 4 * (6 * 5 + 5 * 4)
    # x, the output of the first layer, and a view of the second weight
    assert one.saved_bytes == 4 * (3 * 6 + 3 * 5 + 5 * 4)
    assert one.parameter_order == ("0.weight", "1.weight")
    assert one.flops_by_module == {"": products, "0": 2 * 3 * 6 * 5, "1": 2 * 3 * 5 * 4}


MODELS = {
    "mlp": (lambda: MLP([64]), batch(64)),
    "token_mlp": (TokenMLP, (torch.rand(8, 6), torch.randint(4, (8,)))),
    "resnet18": (lambda: frozen(resnet18(num_classes=10), "layer1", "layer3.0"), batch(3, 32, 32)),
    "vit": (lambda: vit_b_16(num_classes=10, image_size=32), batch(3, 32, 32, size=2)),
    "attention": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Flatten(), nn.Linear(32, 10)), batch(4, 8)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_a_fake_copy_gives_the_same_counts_as_a_real_step(name):
    build, one = MODELS[name]
    model = build()
    fake = ModelCopy.without_values(model).count(BatchTask(), one)
    real = run_and_count(copy.deepcopy(model), BatchTask(), one, META)
    assert fake == real
    assert fake.flops_forward > 0


@pytest.mark.parametrize("name", ["mlp", "attention"])  # a convolution takes scratch memory
def test_the_peak_memory_agrees_with_the_profiler_of_torch(name):
    from torch.profiler import ProfilerActivity, profile

    build, one = MODELS[name]
    model = build()
    BatchTask()(model, one).backward()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        BatchTask()(model, one).backward()
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert count_step(model, BatchTask(), one).peak_bytes == peak


def test_counting_does_not_change_the_model_its_gradients_or_the_random_state():
    class Draws(MLP):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(nn.functional.dropout(x + torch.rand_like(x)))

    model, one = Draws([64]), batch(64)
    model(one[0]).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    count_step(model, BatchTask(), one)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert model.calls == 1
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_small_step_is_counted_on_real_tensors_and_a_large_one_without_values():
    assert count_step(MLP([64]), BatchTask(), batch(64)).counted_on == REAL
    assert count_step(MLP([64]), BatchTask(), batch(64, size=2048)).counted_on == META
    assert count_step(resnet18(), BatchTask(), batch(3, 32, 32)).counted_on == META


@pytest.mark.parametrize("hidden", [8, 2**17])
def test_in_an_unfrozen_copy_everything_trains_whatever_the_flags_of_the_model(hidden):
    model = nn.Sequential(nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 10))
    expected = count_step(model, BatchTask(), batch(64))
    model[0].requires_grad_(False)
    copied = ModelCopy.unfrozen(model)
    assert copied.has_values == (hidden == 8)
    assert count_step(copied, BatchTask(), batch(64)) == expected
    assert not model[0].weight.requires_grad


def test_a_fake_model_can_be_counted_twice():
    model = ModelCopy.without_values(resnet18(num_classes=10))
    one = batch(3, 32, 32)
    assert model.count(BatchTask(), one) == model.count(BatchTask(), one)


def test_torch_prints_no_stack_if_an_operator_refuses_fake_tensors(capfd):
    class Tries(nn.Linear):
        def forward(self, x):
            try:
                return super().forward(x) @ torch.ones(3, 3)
            except RuntimeError:
                return super().forward(x)

    assert count_step(Tries(64, 2**13), BatchTask(), batch(64)).counted_on == META
    assert capfd.readouterr().err == ""

"""What makes a step with frozen parts slower than its FLOPs say: what is there is found, and nothing else."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from runner.cost.slower import why_slower
from runner.freezing.selection import select


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def reasons(model: nn.Module, optimizer=None) -> list[str]:
    return list(why_slower(model, select(model, ["0"]), optimizer))


def test_a_plain_model_has_nothing_that_slows_it():
    model = net()
    assert reasons(model, SGD(model.parameters(), 0.1)) == []


def test_hooks_of_modules_and_parameters_are_named():
    model = net()
    model[0].register_full_backward_hook(lambda *args: None)
    model[1].bias.register_hook(lambda gradient: None)
    assert reasons(model) == ["hooks on 0 and 1.bias run in each step"]
    model.register_forward_hook(lambda *args: None)
    assert reasons(model) == ["hooks on the model, 0 and 1.bias run in each step"]


def test_a_hook_that_was_removed_is_none():
    model = net()
    model[0].register_forward_pre_hook(lambda *args: None).remove()
    assert reasons(model) == []


def test_frozen_parameters_that_are_stepped_are_counted_and_none_once_their_gradients_are_none():
    model = net()
    optimizer = SGD(model.parameters(), 0.1)
    model(torch.randn(3, 4)).sum().backward()
    assert reasons(model, optimizer) == ["SGD steps 2 frozen parameters, whose gradients are not None"]
    model[0].bias.grad = None
    assert reasons(model, optimizer) == ["SGD steps a frozen parameter, whose gradient is not None"]
    optimizer.zero_grad()
    assert reasons(model, optimizer) == []


def test_a_compiled_model_compiles_again():
    model = net()
    model.compile()
    assert reasons(model) == ["torch.compile compiles the model again in the first step after a change of flags"]


def test_without_frozen_parameters_nothing_is_said():
    model = net()
    model[0].register_forward_hook(lambda *args: None)
    assert list(why_slower(model, select(model, []), None)) == []

"""In eval mode and back: whatever a forward pass does to a model's tensors, their bits, memory and places come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from runner.kept_state import in_eval_mode, state_kept
from runner.tensors import same_bits


class Net(nn.Module):
    """A model with a tied weight, a buffer, an empty buffer, and a part that is held in eval mode."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(4).eval()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("cache", None)


@torch.no_grad()
def add_in_place(net):
    net.one.weight.add_(1)


def write_through_data(net):
    net.one.weight.data.mul_(2)


def new_data(net):
    net.one.weight.data = torch.zeros(4, 4)


def other_dtype(net):
    net.mean.data = net.mean.double()


def other_shape(net):
    net.mean.data = torch.zeros(2, 2)


def transposed(net):
    net.one.weight.data = net.one.weight.data.t()


def replaced_buffer(net):
    net.mean = net.mean + 1


def same_bits_elsewhere(net):
    net.mean = net.mean.clone()


def filled_buffer(net):
    net.cache = torch.ones(2)


def new_buffer(net):
    net.register_buffer("extra", torch.ones(2))


def removed_buffer(net):
    del net.mean


def new_parameter(net):
    net.one.weight = nn.Parameter(torch.zeros(4, 4))


def untied(net):
    net.two.weight = nn.Parameter(net.two.weight.detach().clone())


def negative_zero(net):
    net.mean.neg_()


def nan_and_back(net):
    net.mean.fill_(float("nan"))


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (add_in_place, ["one.weight", "two.weight"]),
        (write_through_data, ["one.weight", "two.weight"]),
        (new_data, ["one.weight", "two.weight"]),
        (other_dtype, ["mean"]),
        (other_shape, ["mean"]),
        (transposed, ["one.weight", "two.weight"]),
        (replaced_buffer, ["mean"]),
        (same_bits_elsewhere, ["mean"]),
        (filled_buffer, ["cache"]),
        (new_buffer, ["extra"]),
        (removed_buffer, ["mean"]),
        (new_parameter, ["one.weight"]),
        (untied, ["two.weight"]),
        (negative_zero, ["mean"]),
        (nan_and_back, ["mean"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_written_is_named_and_put_back_bit_by_bit_in_the_same_memory(write, names):
    net = Net()
    tensors = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers())
    before = {name: (tensor.detach().clone(), tensor.data_ptr(), tensor.stride()) for name, tensor in tensors.items()}
    with in_eval_mode(net) as written:
        assert not any(module.training for module in net.modules())
        write(net)
    assert written == names
    now = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers())
    assert list(now) == list(tensors)
    for name, tensor in now.items():
        value, memory, stride = before[name]
        assert tensor is tensors[name]
        assert (tensor.data_ptr(), tensor.stride(), tensor.dtype) == (memory, stride, value.dtype)
        assert same_bits(tensor, value)
    assert net.cache is None
    assert [name for name, module in net.named_modules() if not module.training] == ["norm"]
    assert net.one.weight is net.two.weight


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)))


def parametrized():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), parametrizations.weight_norm(nn.Linear(4, 4)))


def recurrent():
    return nn.LSTM(4, 4, num_layers=2, dropout=0.5)


def channels_last():
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*jit.script")
@pytest.mark.parametrize("make", [scripted, parametrized, recurrent, channels_last])
def test_models_that_write_nothing_in_eval_mode_keep_their_bits_and_name_nothing(make):
    model, x = make(), torch.randn(3, 4, 4, 4) if make is channels_last else torch.randn(3, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with in_eval_mode(model) as written, torch.no_grad():
        model(x)
    assert written == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    output = model(x)
    (output[0] if isinstance(output, tuple) else output).sum().backward()


@pytest.mark.filterwarnings("ignore:.*jit.script")
def test_a_scripted_model_gets_its_bits_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return x

    model = torch.jit.script(Counts())
    with in_eval_mode(model) as written:
        model(torch.ones(1))
    assert (written, model.calls.item()) == (["calls"], 0)


def test_copies_that_are_given_are_used_in_place_of_new_ones():
    model = nn.Linear(2, 2)
    weight = model.weight.detach().clone()
    with state_kept(model, {"weight": weight}), torch.no_grad():
        model.weight += 1
        model.bias += 1
        weight += 2
    assert torch.equal(model.weight, weight)
    with state_kept(model, {"no such name": weight}), torch.no_grad():
        model.weight += 1
    assert torch.equal(model.weight, weight)

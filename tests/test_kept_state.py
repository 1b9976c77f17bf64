"""In eval mode and back: whatever a forward pass does to a model's tensors, their bits, memory and places come back."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

from runner.kept_state import contents_kept, gradients_kept, in_eval_mode, state_kept
from runner.tensors import leaves_in, same_bits


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


# What an optimizer, a scheduler and the like hold


class Counter:
    """An object with all kinds of contents, as third-party optimizers and schedulers have them."""

    def __init__(self):
        self.number, self.tensor, self.cells = 0, torch.zeros(3), [torch.ones(2), {"inner": [1]}]
        self.generator = torch.Generator().manual_seed(3)
        self.last, self.seen, self.pair = deque([1], maxlen=2), {1}, (torch.ones(1), {})
        self.bound = {"step": self.count}

    def count(self):
        self.number += 1


def change_and_raise(counter):
    change_all(counter)
    raise KeyError


def change_all(counter):
    counter.bound.pop("step")()
    counter.tensor += torch.rand(3, generator=counter.generator)
    counter.cells[0], counter.cells[1]["inner"] = torch.rand(2), []
    counter.last.append(5)
    counter.seen.add(2)
    counter.pair[0].zero_()
    counter.pair[1]["new"] = counter.new = 7


def test_whatever_an_object_holds_comes_back_in_the_same_objects():
    counter = Counter()
    held, tensor, inner = dict(vars(counter)), counter.tensor, counter.cells[1]["inner"]
    first, next_number = counter.cells[0], torch.rand(1, generator=torch.Generator().manual_seed(3))
    with contents_kept(counter):
        change_all(counter)
        assert counter.number == 1
    assert vars(counter) == held
    assert counter.tensor is tensor
    assert not tensor.any()
    assert counter.cells[0] is first
    assert counter.cells[1]["inner"] is inner
    assert (inner, list(counter.last), counter.seen, counter.pair[1]) == ([1], [1], {1}, {})
    assert counter.pair[0].item() == 1
    assert torch.equal(torch.rand(1, generator=counter.generator), next_number)
    assert list(counter.bound) == ["step"]


def test_what_is_kept_besides_is_not_looked_into():
    counter = Counter()
    with contents_kept(counter, besides=[counter.cells]):
        change_all(counter)
    assert counter.cells[1]["inner"] == []
    assert not counter.tensor.any()


def test_the_object_of_a_method_is_looked_into_but_not_its_dataset():
    counter = Counter()
    counter.data = TensorDataset(torch.zeros(3))
    with contents_kept(counter.count):
        counter.count()
        counter.data.tensors[0].add_(1)
        counter.tensor.add_(1)
    assert (counter.number, counter.tensor.any().item(), counter.data.tensors[0].sum().item()) == (0, False, 3)


def test_contents_come_back_after_an_exception():
    counter = Counter()
    with pytest.raises(KeyError), contents_kept(counter):
        change_and_raise(counter)
    assert (counter.number, list(counter.last)) == (0, [1])


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.LBFGS, torch.optim.Rprop])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_the_state_of_an_optimizer_and_its_scheduler_comes_back_bit_by_bit(optimizer_class, steps_before):
    model = nn.Linear(3, 2)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)

    def step():
        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(4, 3)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()

    for _ in range(steps_before):
        step()
    before, attributes = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict())), set(vars(optimizer))
    state = {key: dict(value) for key, value in optimizer.state.items()}
    with contents_kept(optimizer, scheduler, besides=model.parameters()), state_kept(model):
        step()
        step()
    now = optimizer.state_dict(), scheduler.state_dict()
    for old, new in zip(leaves_in(before), leaves_in(now), strict=True):
        assert same_bits(old, new) if isinstance(old, torch.Tensor) else old == new
    assert set(vars(optimizer)) == attributes
    assert optimizer.state.keys() == state.keys()
    assert all(optimizer.state[key][name] is each for key, value in state.items() for name, each in value.items())


def test_gradients_come_back_though_backward_adds_to_them():
    model, bare = nn.Linear(3, 2), nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    gradient = model.weight.grad
    with gradients_kept([*model.parameters(), *bare.parameters()]):
        (model(torch.ones(1, 3)) + bare(torch.ones(1, 3))).sum().backward()
        model.weight.grad.zero_()
    assert model.weight.grad is gradient
    assert gradient.eq(1).all()
    assert [each.grad for each in (model.bias, *bare.parameters())] == [None, None, None]

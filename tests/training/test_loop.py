"""The training loop agrees bit by bit with one written by hand."""

from __future__ import annotations

import inspect
from math import isnan

import pytest
import torch
from torch import nn

from runner.training import loop as loop_module
from runner.training.loop import train, train_in_present_modes

LR, MOMENTUM, DECAY = 0.1, 0.9, 0.01


class UnusedLayer(nn.Module):
    """A model that uses only one of its two layers."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x)


def loss_of(model, batch):
    """Return the mean cross entropy of a batch."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def net():
    """Return a model with BatchNorm between two linear layers; always the same values."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def batches(count=5):
    """Yield (x, y) batches of four samples; always the same."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(4, 3, generator=generator), torch.randint(2, (4,), generator=generator)


def sgd(model, name="all", **options):
    """Return an SGD optimizer with one named group of all parameters and the learning rate LR."""
    return torch.optim.SGD([{"name": name, "params": list(model.parameters())}], lr=LR, **options)


def by_hand(model, clip=None, rate=lambda step: LR, count=5):
    """Train with SGD with momentum and weight decay, written by hand; return the losses."""
    model.train()
    parameters, velocities, losses = list(model.parameters()), {}, []
    for step, batch in enumerate(batches(count)):
        loss = loss_of(model, batch)
        losses.append(loss.detach())
        gradients = torch.autograd.grad(loss, parameters)
        if clip is not None:
            total = torch.stack([gradient.norm() for gradient in gradients]).norm()
            scale = min(torch.tensor(1.0), clip / (total + 1e-6))
            gradients = [gradient * scale for gradient in gradients]
        with torch.no_grad():
            for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                decayed = gradient.add(parameter, alpha=DECAY)
                previous = velocities.get(index)
                velocities[index] = decayed if previous is None else previous.mul(MOMENTUM).add(decayed)
                parameter.copy_(parameter.add(velocities[index], alpha=-rate(step)))
    return losses


def assert_same(one, other):
    """Assert that two models have the same parameters and buffers."""
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("clip", [None, 0.05, 1e9])
def test_the_loop_agrees_with_handwritten_sgd_bit_by_bit(clip, to_none):
    model, expected = net(), net()
    optimizer = sgd(model, momentum=MOMENTUM, weight_decay=DECAY)
    steps = list(train(model, optimizer, loss_of, batches(), clip=clip, zero_grad_to_none=to_none))
    losses = by_hand(expected, clip)
    assert_same(model, expected)
    assert all(torch.equal(step.loss, loss) for step, loss in zip(steps, losses, strict=True))


def test_clipping_limits_the_total_norm_of_all_gradients():
    model = net()
    for _ in train(model, sgd(model), loss_of, batches(), clip=0.05):
        total = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
        assert total <= 0.05


def test_a_scheduler_steps_after_each_step_and_a_step_has_the_learning_rate_that_it_used():
    model, expected = net(), net()
    optimizer = sgd(model, name="mine", momentum=MOMENTUM, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    steps = list(train(model, optimizer, loss_of, batches(), scheduler=scheduler))
    assert [step.lrs for step in steps] == [{"mine": LR * 0.5**step} for step in range(5)]
    assert optimizer.param_groups[0]["lr"] == LR * 0.5**5
    by_hand(expected, rate=lambda step: LR * 0.5**step)
    assert_same(model, expected)


def test_a_step_has_the_learning_rate_of_every_group():
    model = net()
    groups = [{"name": "a", "params": model[0].parameters()}, {"name": "b", "params": model[3].parameters(), "lr": 0.0}]
    (step,) = train(model, torch.optim.SGD(groups, lr=LR), loss_of, batches(1))
    assert step.lrs == {"a": LR, "b": 0.0}


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_are_set_to_none_or_to_zero(to_none):
    model = UnusedLayer()
    model.unused.weight.grad = torch.ones(2, 3)
    before = model.unused.weight.detach().clone()
    list(train(model, sgd(model, weight_decay=DECAY), loss_of, batches(1), zero_grad_to_none=to_none))
    assert (model.unused.weight.grad is None) is to_none
    assert torch.equal(model.unused.weight, before) is to_none
    assert to_none or not model.unused.weight.grad.any()


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_if_everything_is_frozen_the_loop_runs_and_changes_no_parameter(clip, to_none):
    model = net().requires_grad_(False)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = sgd(model, momentum=MOMENTUM, weight_decay=DECAY)
    steps = list(train(model, optimizer, loss_of, batches(), clip=clip, zero_grad_to_none=to_none))
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_step_has_its_number_a_loss_without_a_graph_and_a_duration():
    model = net()
    steps = list(train(model, sgd(model), loss_of, batches(3)))
    assert [step.number for step in steps] == [1, 2, 3]
    assert all(not step.loss.requires_grad and step.loss.shape == () and step.seconds > 0 for step in steps)


def test_a_step_is_yielded_before_the_next_batch_is_read():
    model, read = net(), []

    def counted():
        for number, batch in enumerate(batches(), 1):
            read.append(number)
            yield batch

    for step in train(model, sgd(model), loss_of, counted()):
        assert read == list(range(1, step.number + 1))


def test_the_model_is_put_in_training_mode():
    model = net().eval()
    list(train(model, sgd(model), loss_of, batches(1)))
    assert model.training
    assert model[1].num_batches_tracked.item() == 1


def test_without_batches_there_are_no_steps():
    model = net()
    assert list(train(model, sgd(model), loss_of, [])) == []


def test_the_loop_imports_nothing_from_this_project():
    imports = [line for line in inspect.getsource(loop_module).splitlines() if line.startswith(("import ", "from "))]
    assert imports
    assert not any("runner" in line for line in imports)


def test_an_optimizer_without_closure_and_learning_rate_is_supported():
    class Halves(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        @torch.no_grad()
        def step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(0.5)

    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    batches = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))] * 2
    steps = list(train(model, Halves(model.parameters()), loss_of, batches))
    assert torch.equal(model.weight, before / 4)
    assert [list(step.lrs) for step in steps] == [["0"], ["0"]]


def test_the_rate_of_a_group_that_computes_it_itself_is_not_a_number():
    class Relative(torch.optim.SGD):  # as Adafactor of transformers, whose rate is None
        def step(self, closure=None):
            (group,) = self.param_groups
            group["lr"] = 0.1
            super().step(closure)
            group["lr"] = None

    model = nn.Linear(3, 2)
    optimizer = Relative(model.parameters())
    optimizer.param_groups[0]["lr"] = None
    (step,) = train(model, optimizer, loss_of, [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))])
    assert isnan(step.lrs["0"])


def test_training_in_the_present_modes_leaves_eval_mode_as_it_is():
    batches = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))]
    for train_so, mode in ((train, True), (train_in_present_modes, False)):
        model = nn.Linear(3, 2).eval()
        assert len(list(train_so(model, sgd(model), loss_of, batches))) == 1
        assert model.training is mode

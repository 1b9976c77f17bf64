"""Who moved what was frozen: each cause has a loop that provokes it and just it, and seeking it changes nothing."""

from __future__ import annotations

import random
import sys
import threading
from collections import OrderedDict
from contextlib import nullcontext

import numpy
import pytest
import torch
from torch import nn
from torch.nn.modules import module as every_module
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler, swa_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from runner import audit
from runner.freezing.selection import select

pytestmark = pytest.mark.usefixtures("one_thread")

LR = 0.1
X = torch.tensor([[1.0, 0.5, -1.0], [0.25, -2.0, 1.0], [-0.5, 1.5, 2.0], [2.0, 0.0, -0.75]])


def layers(**modules):
    return nn.Sequential(OrderedDict(modules))


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def seed():
    torch.default_generator.manual_seed(0)  # torch.manual_seed notes for every other device who called: milliseconds


def net(**more):
    """A layer that is to leak, one that is frozen and keeps still, and one that trains: of matrices alone, for Muon."""
    seed()
    model = layers(leaky=linear(3, 2), bend=nn.Tanh(), held=linear(2, 2), bow=nn.Tanh(), free=linear(2, 2), **more)
    model.held.requires_grad_(False)
    return model


def lbfgs(params, lr=LR):
    return torch.optim.LBFGS(params, lr=lr, max_iter=4)


def as_groups(model, lr):
    """The layer that is to leak in a group of its own rate."""
    return [{"params": model.leaky.parameters(), "lr": lr}, {"params": [*model[2].parameters(), *model[4].parameters()]}]


def pass_through(model, optimizer, to_none=True, x=X):
    """What a closure does: it clears the gradients, and makes new ones."""
    optimizer.zero_grad(set_to_none=to_none)
    loss = model(x).square().mean()
    loss.backward()
    return loss


def train(model, *optimizers, steps=3, to_none=True, after=lambda: None, batches=lambda number: X):
    """A plain loop, in which several optimizers take turns; `after` is done at the end of its body."""
    for number in range(steps):
        optimizer = optimizers[number % len(optimizers)]
        pass_through(model, optimizer, to_none, batches(number))
        optimizer.step()
        after()


def train_with_closures(model, optimizer, steps=3, batches=lambda number: X):
    for number in range(steps):
        optimizer.step(lambda number=number: pass_through(model, optimizer, x=batches(number)))


def freeze(module, to_zeros=False):
    """As users do it in mid-run; the gradients that are there stay, as None or as zeros."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = torch.zeros_like(parameter) if to_zeros else None
    return module


def write(tensor, value=None):
    with torch.no_grad():
        tensor.copy_(tensor + 1 if value is None else value)


def row_of(report, name):
    (row,) = [row for row in report.rows if row["name"] == name]
    return row


def leaks(report):
    return {row["name"]: row["cause"] for row in report.rows if row["verdict"] == "leaked"}


def just(report, cause, *names):
    """Whether these leaked, by this cause, and whatever else is frozen held without one; nothing is left to tell."""
    others = {(row["verdict"], row["cause"]) for row in report.rows if row["frozen"] and row["name"] not in names}
    assert leaks(report) == dict.fromkeys(names, cause)
    assert others <= {("held", "")}
    assert report.notes == []
    return True


def options(of, **given):
    """An optimizer's class with options, and a name for the test."""
    told = ",".join(f"{key}={value}" for key, value in given.items())
    return pytest.param(lambda params, **more: of(params, **{"lr": LR, **given, **more}), id=f"{of.__name__}({told})")


DENSE = [
    one
    for one in vars(torch.optim).values()
    if isinstance(one, type) and issubclass(one, Optimizer) and one not in (Optimizer, torch.optim.SparseAdam)
]
LOOKS = pytest.mark.parametrize("every", [None, 1], ids=["looks at powers of two", "every step"])


# Optimizers nobody has heard of


class Mine(Optimizer):
    """What those written here share: groups with a rate, and a rule for each parameter that has a gradient."""

    def __init__(self, params, lr=LR, **options):
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)
        return loss

    def move(self, parameter, group):
        parameter.sub_(parameter.grad, alpha=group["lr"])


class Signs(Mine):
    """Makes steps of one size, whatever its rate is."""

    def move(self, parameter, group):
        parameter.sub_(parameter.grad.sign(), alpha=0.01)


class Drift(Mine):
    """Adds a constant."""

    def move(self, parameter, group):
        parameter.add_(group["lr"])


class Noise(Mine):
    """Adds numbers drawn from torch, numpy and Python."""

    def move(self, parameter, group):
        drawn = torch.randn_like(parameter) + float(numpy.random.rand()) + random.random()
        parameter.sub_(parameter.grad + drawn, alpha=group["lr"])


class Velocity(Mine):
    """Momentum that is kept in an attribute, by tensor."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.velocity = {}

    def move(self, parameter, group):
        velocity = self.velocity.setdefault(parameter, torch.zeros_like(parameter))
        parameter.sub_(velocity.mul_(0.9).add_(parameter.grad), alpha=group["lr"])


class VelocityById(Velocity):
    """Momentum that is kept by the tensor's id."""

    def move(self, parameter, group):
        velocity = self.velocity.setdefault(id(parameter), torch.zeros_like(parameter))
        parameter.sub_(velocity.mul_(0.9).add_(parameter.grad), alpha=group["lr"])


class WeakVelocity(Velocity):
    """Momentum that is kept while the tensor lives, and that goes with no copy of it."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.velocity = WeakTensorKeyDictionary()


class FromTheStart(Mine):
    """Momentum whose state is made when the optimizer is, as Adagrad's."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"count": 0, "velocity": torch.zeros_like(parameter)}
        self.state["count"] = 0

    def move(self, parameter, group):
        state = self.state[parameter]
        state["count"] += 1
        self.state["count"] += 1
        parameter.sub_(state["velocity"].mul_(0.9).add_(parameter.grad), alpha=group["lr"])


class Ahead(Optimizer):
    """Lets another optimizer go ahead, and every second step comes after it half of the way."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner, self.count = inner, 0

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter in parameters:
            self.state[parameter].setdefault("slow", parameter.clone())
        loss = self.inner.step(closure)
        self.count += 1
        for parameter in parameters if self.count % 2 == 0 else ():
            slow = self.state[parameter]["slow"]
            parameter.copy_(slow.lerp_(parameter, 0.5))
        return loss


class Pair(Optimizer):
    """Hands the first half of its parameters to one optimizer and the rest to another, and keeps both in a list."""

    def __init__(self, params, lr=LR):
        params = list(params)
        super().__init__(params, {"lr": lr})
        self.both = [Velocity(params[:1], lr), Adam(params[1:], lr)]

    def step(self, closure=None):
        for one in self.both:
            one.step()


class Normed(Mine):
    """Divides each gradient by the norm of all."""

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt()
        for parameter in parameters:
            parameter.sub_(parameter.grad / norm, alpha=self.param_groups[0]["lr"])


class NeedsClosure(Mine):
    """Makes its own gradients, and cannot do without."""

    @torch.no_grad()
    def step(self, closure):
        return super().step(closure)


class Climbs(Mine):
    """Goes up a little, takes the gradients there, and steps with them from where it was, as SAM."""

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("give a closure")
        closure = torch.enable_grad()(closure)
        loss, parameters = closure(), [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        was = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.add_(parameter.grad, alpha=0.05)
        self.zero_grad()
        closure()
        for parameter, start in zip(parameters, was, strict=True):
            parameter.copy_(start).sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
        return loss


class NeedsLoss(Mine):
    """Wants the loss itself: its steps are the smaller, the smaller the loss is."""

    @torch.no_grad()
    def step(self, loss):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad * loss, alpha=group["lr"])


class Shrinks(Mine):
    """Calls its weight decay `wd`."""

    def move(self, parameter, group):
        parameter.sub_(parameter.grad + group["wd"] * parameter, alpha=group["lr"])


class Spoils(Mine):
    """Adds its weight decay to the gradient itself."""

    def move(self, parameter, group):
        parameter.sub_(parameter.grad.add_(parameter, alpha=group["weight_decay"]), alpha=group["lr"])


class Takes(Mine):
    """Takes the gradients away."""

    def move(self, parameter, group):
        super().move(parameter, group)
        parameter.grad = None


class Locked(Mine):
    """Holds what cannot be copied."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.lock = threading.Lock()


class Bound(Mine):
    """Holds a function that holds the optimizer: a copy of it would step the real one's parameters."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.stepping = lambda: Mine.step(self)

    def step(self, closure=None):
        self.stepping()


def ahead(params, lr=LR):
    return Ahead(Adam(params, lr=lr))


def decaying(params, lr=LR):
    return Shrinks(params, lr, wd=0.1)


def spoiling(params, lr=LR):
    return Spoils(params, lr, weight_decay=0.1)


HEARD_OF_BY_NOBODY = [
    Signs, Drift, Noise, Velocity, VelocityById, FromTheStart, ahead, Pair, Normed, NeedsClosure, decaying, spoiling, Takes
]  # fmt: skip
HEARD_OF_BY_NOBODY = [pytest.param(one, id=one.__name__) for one in HEARD_OF_BY_NOBODY]


# Each cause, in a loop that provokes it and just it


@LOOKS
@pytest.mark.parametrize("of", DENSE)
def test_a_gradient_moves_what_is_frozen_in_name_only_under_every_optimizer(of, every):
    model = net()
    optimizer = of(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        (train_with_closures if of is torch.optim.LBFGS else train)(model, optimizer)
    assert just(report, "gradient", "leaky.weight")


@LOOKS
@pytest.mark.parametrize(
    "of",
    [
        options(AdamW, weight_decay=0.1),
        options(SGD, weight_decay=0.1),
        options(torch.optim.Adagrad, weight_decay=0.1),
        options(torch.optim.RMSprop, weight_decay=0.1),
        options(torch.optim.Adadelta, weight_decay=0.1),
    ],
)
def test_weight_decay_moves_what_has_a_gradient_of_zeros(of, every):
    model = net()
    freeze(model.leaky, to_zeros=True)
    optimizer = of(model.parameters())
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert just(report, "weight_decay", "leaky.weight")


GATHERED = [
    (options(Adam), "optimizer_state"),
    (options(AdamW, weight_decay=0.0), "optimizer_state"),
    (options(SGD, momentum=0.9), "optimizer_state"),
    (options(torch.optim.RMSprop, momentum=0.9), "optimizer_state"),
    (options(torch.optim.Adamax), "optimizer_state"),
    (options(torch.optim.NAdam), "optimizer_state"),
    (options(torch.optim.RAdam), "optimizer_state"),
    (options(Adam, weight_decay=0.1), "weight_decay|optimizer_state"),
    (options(AdamW, weight_decay=0.1), "weight_decay|optimizer_state"),
    (options(SGD, momentum=0.9, weight_decay=0.1), "weight_decay|optimizer_state"),
]
GATHERED = [pytest.param(*one.values, cause, id=one.id) for one, cause in GATHERED]


@LOOKS
@pytest.mark.parametrize(("of", "cause"), GATHERED)
def test_what_the_state_had_gathered_moves_what_is_frozen_after_some_steps_where_the_audit_begins_then(of, cause, every):
    model = net()
    optimizer = of(model.parameters())
    train(model, optimizer, to_none=False)
    freeze(model.leaky, to_zeros=True)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert just(report, cause, "leaky.weight")


@LOOKS
@pytest.mark.parametrize(("of", "cause"), GATHERED)
def test_what_the_state_had_gathered_moves_what_is_frozen_after_some_steps_in_the_audit(of, cause, every):
    model = net()
    optimizer = of(model.parameters())
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
        freeze(model.leaky, to_zeros=True)
        report.freeze(["leaky", "held"])
        train(model, optimizer, to_none=False)
    assert just(report, cause, "leaky.weight")


def test_what_lbfgs_had_gathered_moves_what_has_no_gradient_at_all():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=LR, max_iter=2)
    train_with_closures(model, optimizer)
    freeze(model.leaky)
    with audit(model, None, optimizer) as report:
        train_with_closures(model, optimizer)
    assert just(report, "optimizer_state", "leaky.weight")


@LOOKS
@pytest.mark.parametrize("of", [torch.optim.ASGD, Drift, Noise])
def test_a_rule_that_needs_no_gradient_no_decay_and_no_state_is_to_blame_itself(of, every):
    model = net()
    freeze(model.leaky, to_zeros=True)
    optimizer = of(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert just(report, "optimizer_rule", "leaky.weight")


@LOOKS
@pytest.mark.parametrize("of", [torch.optim.Rprop, Signs])
@pytest.mark.parametrize(("lr", "cause"), [(0.0, "optimizer_ignores_lr"), (LR, "gradient")])
def test_an_optimizer_that_steps_at_rate_zero_ignores_it(of, lr, cause, every):
    model = net()
    optimizer = of(as_groups(model, lr))
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train(model, optimizer)
    assert just(report, cause, "leaky.weight")


def rate_put_to_zero(optimizer):
    """A scheduler that knows of a rate what it was before it was put to 0."""
    optimizer.param_groups[0]["lr"] = LR
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    optimizer.param_groups[0]["lr"] = 0.0
    return scheduler


SCHEDULERS = {
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, LR, total_steps=9),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, LR),
    "SWALR": lambda optimizer: swa_utils.SWALR(optimizer, LR),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 9, eta_min=0.01),
    "LambdaLR": rate_put_to_zero,
}


@LOOKS
@pytest.mark.parametrize("scheduler_of", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.filterwarnings("error")
def test_a_scheduler_that_raises_a_rate_of_zero_is_to_blame_for_what_then_moves(scheduler_of, every):
    model = net()
    optimizer = SGD(as_groups(model, 0.0), lr=LR, momentum=0.9)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        scheduler = scheduler_of(optimizer)
        train(model, optimizer, steps=9, after=scheduler.step)
    assert just(report, "scheduler", "leaky.weight")


@LOOKS
def test_a_rate_that_a_scheduler_raises_is_not_to_blame_for_what_moves_at_rate_zero_too(every):
    model = net()
    optimizer = Signs(as_groups(model, 0.0))
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        scheduler = lr_scheduler.OneCycleLR(optimizer, LR, total_steps=9, cycle_momentum=False)
        train(model, optimizer, steps=4, after=scheduler.step)
    assert just(report, "optimizer_ignores_lr", "leaky.weight")


def test_a_rate_that_a_scheduler_only_lowers_leaves_the_blame_with_the_gradient():
    model = net()
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer) as report:
        train(model, optimizer, after=lr_scheduler.ExponentialLR(optimizer, 0.5).step)
    assert just(report, "gradient", "leaky.weight")


class Reassigns(nn.Module):
    """Puts a new tensor in its buffer's place at every pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return x


class Parent(nn.Module):
    """Writes the weight of a child that it does not call."""

    def __init__(self):
        super().__init__()
        self.child = linear(2, 2).requires_grad_(False)

    def forward(self, x):
        write(self.child.weight)
        return x


class Stranger(nn.Module):
    """Writes the weight of a module that is neither above nor below it."""

    def __init__(self, other):
        super().__init__()
        self.reach = [other]

    def forward(self, x):
        write(self.reach[0].weight)
        return x


def looking_up():
    seed()
    table = nn.Embedding(9, 3, max_norm=0.1).requires_grad_(False)
    return layers(table=table, leaky=linear(3, 2), held=linear(2, 2).requires_grad_(False), free=linear(2, 2))


def with_stranger():
    model = net()
    return layers(stranger=Stranger(model.held), **dict(model.named_children()))


STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]
WRITES_IN_FORWARD = {
    "Embedding(max_norm)": (looking_up, "table", ["table.weight"]),
    "a buffer that is reassigned": (lambda: net(odd=Reassigns()), "odd", ["odd.seen"]),
    "a parent that writes": (lambda: net(odd=Parent()), "odd", ["odd.child.weight"]),
    "a stranger that writes": (with_stranger, "held", ["held.weight"]),
    "BatchNorm": (
        lambda: net(odd=nn.BatchNorm1d(2, affine=False)),
        "odd",
        [f"odd.{name}" for name in STATISTICS],
    ),
}
STEPS = {
    "step()": (SGD, train),
    "Adam.step(closure)": (Adam, train_with_closures),
    "LBFGS.step(closure)": (lbfgs, train_with_closures),
}


@LOOKS
@pytest.mark.parametrize(("of", "training"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("model_of", "frozen", "names"), WRITES_IN_FORWARD.values(), ids=WRITES_IN_FORWARD)
def test_a_forward_pass_that_writes_is_to_blame_even_inside_a_step(model_of, frozen, names, of, training, every):
    model = model_of()
    batches = (lambda number: torch.tensor([[number, number + 4]])) if hasattr(model, "table") else (lambda number: X)
    optimizer = of(model.parameters(), lr=LR)
    with audit(model, select(model, [frozen], buffers="frozen"), optimizer, every) as report:
        training(model, optimizer, batches=batches)
    assert just(report, "forward_write", *names)


def through_data(model):
    model.leaky.weight.data.mul_(0.5)


def loading(model):
    state = {name: tensor + 1 if name == "leaky.weight" else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)


def anew(model):
    model.leaky.weight = nn.Parameter(model.leaky.weight.detach() + 1, requires_grad=False)


WRITES_OUTSIDE = {"copy_": lambda model: write(model.leaky.weight), ".data": through_data, "load_state_dict": loading}


@LOOKS
@pytest.mark.parametrize("writing", [*WRITES_OUTSIDE.values(), anew], ids=[*WRITES_OUTSIDE, "another parameter"])
def test_whoever_writes_between_steps_is_outside(writing, every):
    model = net()
    freeze(model.leaky)
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, after=lambda: writing(model))
    assert just(report, "outside_write", "leaky.weight")


@LOOKS
@pytest.mark.parametrize("hook", ["register_step_pre_hook", "register_step_post_hook"])
@pytest.mark.parametrize("when", ["before the audit", "in the audit"])
def test_whoever_writes_in_a_hook_of_the_step_is_outside(hook, when, every):
    model = net()
    freeze(model.leaky)
    optimizer = Adam(model.parameters(), lr=LR)
    register = getattr(optimizer, hook)
    if when == "before the audit":
        register(lambda *_: write(model.leaky.weight))
    with audit(model, None, optimizer, every) as report:
        if when == "in the audit":
            register(lambda *_: write(model.leaky.weight))
        train(model, optimizer)
    assert just(report, "outside_write", "leaky.weight")


def test_whoever_writes_in_the_backward_pass_is_outside():
    model = net()
    freeze(model.leaky)
    model.free.weight.register_post_accumulate_grad_hook(lambda _: write(model.leaky.weight))
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer) as report:
        train(model, optimizer)
    assert just(report, "outside_write", "leaky.weight")


def as_a_view(model):
    model.leaky.weight = nn.Parameter(model.free.weight.detach()[:1], requires_grad=False)


def as_its_data(model):
    freeze(model.leaky)
    model.leaky.weight.data = model.free.weight.data


@LOOKS
@pytest.mark.parametrize("share", [as_a_view, as_its_data])
@pytest.mark.parametrize("inside", [True, False], ids=["and in the optimizer too", "and not in the optimizer"])
def test_what_lies_in_the_memory_of_what_trains_moves_with_it(share, inside, every):
    model = net()
    share(model)
    model.leaky.forward = lambda x: x[:, :2]
    optimizer = Adam(model.parameters() if inside else model.free.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer)
    assert just(report, "shared_tensor", "leaky.weight")


NEEDS_A_STEP = "it needs one more step that writes it, after the one at which the change was found, or audit(every=1)"


@LOOKS
def test_a_write_in_the_forward_pass_of_the_only_step_is_told(every):
    model = net(norm=nn.BatchNorm1d(2))
    freeze(model.norm)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, select(model, ["norm"], buffers="frozen"), optimizer, every) as report:
        train(model, optimizer, steps=1)
    assert just(report, "forward_write", *(f"norm.{name}" for name in STATISTICS))


@LOOKS
def test_a_table_that_only_the_first_forward_pass_has_reason_to_write_is_told(every):
    model = looking_up()
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["table"], optimizer, every) as report:
        train(model, optimizer, steps=5, batches=lambda number: torch.tensor([[0, 1]]))
    assert just(report, "forward_write", "table.weight")


class Once(nn.Module):
    """Writes its weight in the pass for which it is told to."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.told = False

    def forward(self, x):
        if self.told:
            write(self.weight)
        self.told = False
        return x


def tell(model):
    model.odd.told = True


@pytest.mark.parametrize(
    ("how", "cause"),
    [(tell, "forward_write"), (lambda model: write(model.odd.weight), "outside_write")],
    ids=["forward", "outside"],
)
@LOOKS
def test_a_single_write_between_two_looks_is_told_only_where_every_step_is_watched(how, cause, every):
    model = net(odd=Once())
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, steps=5)
        how(model)
        train(model, optimizer, steps=4)
    assert leaks(report) == {"odd.weight": cause if every == 1 else "unknown"}
    assert report.notes == ([] if every == 1 else [f"the cause is unknown for odd.weight: {NEEDS_A_STEP}"])


def test_without_an_optimizer_no_cause_can_be_told_and_it_is_what_is_needed():
    model = net()
    with audit(model) as report:
        write(model.held.weight)
    assert leaks(report) == {"held.weight": "unknown"}
    need = "it needs the optimizer, whose steps would tell: audit(model, frozen, optimizer)"
    assert report.notes == [f"the cause is unknown for held.weight: {need}"]


# Loops of every kind


def mixed():
    """Four frozen layers, each of which another cause moves, and a third optimizer that steps none of them."""
    seed()
    names = ("pulled", "decayed", "stale", "held")
    model = layers(**{name: linear(3, 3) for name in names}, norm=nn.BatchNorm1d(3, affine=False), free=linear(3, 2))
    for name in names[1:]:
        freeze(model.get_submodule(name), to_zeros=True)
    return model


@LOOKS
@pytest.mark.parametrize("turns", [True, False], ids=["in turns", "all in each pass"])
def test_of_several_optimizers_each_is_told_what_it_moved(turns, every):
    model = mixed()
    one = AdamW([*model.pulled.parameters(), *model.decayed.parameters()], lr=LR, weight_decay=0.1)
    other = SGD([*model.stale.parameters(), *model.held.parameters()], lr=LR, momentum=0.9)
    third = Adam(model.free.parameters(), lr=LR)
    model.stale.weight.grad = torch.ones(3, 3)
    other.step()
    with audit(model, select(model, ["**"], ["free"], "frozen"), [one, other, third], every) as report:
        for number in range(9):
            for optimizer in [one, other, third]:
                optimizer.zero_grad(set_to_none=False)
            model(X).square().mean().backward()
            for optimizer in [(one, other, third)[number % 3]] if turns else [one, other, third]:
                optimizer.step()
    assert leaks(report) == {
        "pulled.weight": "gradient",
        "decayed.weight": "weight_decay",
        "stale.weight": "optimizer_state",
        **{f"norm.{name}": "forward_write" for name in STATISTICS},
    }
    assert row_of(report, "held.weight")["verdict"] == "held"
    assert report.notes == []


@LOOKS
def test_gradients_that_were_accumulated_are_told_as_any_other(every):
    model = net()
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        for _ in range(3):
            optimizer.zero_grad()
            for part in X.split(1):
                model(part).square().mean().backward()
            optimizer.step()
    assert just(report, "gradient", "leaky.weight")


@LOOKS
@pytest.mark.parametrize("of", [SGD, Adam, lbfgs])
@pytest.mark.parametrize("keyword", [True, False], ids=["step(closure=...)", "step(...)"])
def test_a_gradient_that_a_closure_makes_in_the_step_is_told(of, keyword, every):
    model = net()
    optimizer, losses = of(model.parameters(), lr=LR), []
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        for _ in range(3):
            closure = {"closure": lambda: pass_through(model, optimizer)}
            losses.append(optimizer.step(**closure) if keyword else optimizer.step(*closure.values()))
    assert just(report, "gradient", "leaky.weight")
    assert all(isinstance(loss, torch.Tensor) for loss in losses)


@LOOKS
def test_a_gradient_that_was_scaled_for_half_precision_is_told(every):
    model = net()
    optimizer, scaler = SGD(model.parameters(), lr=LR), torch.amp.GradScaler("cpu", init_scale=8.0)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(X).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert just(report, "gradient", "leaky.weight")


@LOOKS
def test_a_forward_pass_that_is_done_again_in_the_backward_pass_is_to_blame_for_what_it_writes(every):
    model = net(odd=nn.BatchNorm1d(2, affine=False))
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, select(model, ["odd"], buffers="frozen"), optimizer, every) as report:
        for _ in range(3):
            optimizer.zero_grad()
            checkpoint(model, X.clone().requires_grad_(), use_reentrant=False).square().mean().backward()
            optimizer.step()
    assert just(report, "forward_write", *(f"odd.{name}" for name in STATISTICS))


class Compiled(nn.Module):
    """Passes its model's hooks over, as what `torch.compile` gives does; that itself takes seconds to be imported."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def forward(self, x):
        return self._orig_mod.forward(x)


@LOOKS
@pytest.mark.parametrize("given", ["the model", "the compiled one"])
def test_a_compiled_forward_pass_is_to_blame_for_what_it_writes(given, every):
    model = net(odd=Parent())
    compiled = Compiled(model)
    optimizer = SGD(model.parameters(), lr=LR)
    watched, prefix = (model, "") if given == "the model" else (compiled, "_orig_mod.")
    with audit(watched, ["leaky", "odd"], optimizer, every) as report:
        train(compiled, optimizer)
    assert leaks(report) == {f"{prefix}leaky.weight": "gradient", f"{prefix}odd.child.weight": "forward_write"}


def several_at_once(model):
    stacked = {name: torch.stack([tensor.detach(), tensor.detach() + 1]) for name, tensor in model.named_parameters()}
    torch.func.vmap(lambda some: torch.func.functional_call(model, some, (X,)))(stacked)


@LOOKS
@pytest.mark.parametrize(
    "passing",
    [
        lambda model: torch.func.functional_call(model, {"leaky.weight": model.leaky.weight + 1}, (X,)),
        several_at_once,
    ],
    ids=["functional_call", "vmap"],
)
def test_a_pass_through_other_tensors_in_the_models_place_is_no_write(passing, every):
    model = net()
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train(model, optimizer, after=lambda: passing(model))
    assert just(report, "gradient", "leaky.weight")


@LOOKS
def test_a_forward_pass_that_failed_is_not_to_blame_for_what_is_written_later(every):
    model = net()
    freeze(model.leaky)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        for _ in range(3):
            with pytest.raises(RuntimeError):
                model(torch.ones(1, 7))
            write(model.leaky.weight)
            train(model, optimizer, steps=1)
    assert just(report, "outside_write", "leaky.weight")


@LOOKS
def test_a_tied_parameter_is_one_leak_under_its_first_name(every):
    model = net()
    model.free.weight = model.held.weight
    model.held.requires_grad_(True)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["free"], optimizer, every) as report:
        train(model, optimizer)
    assert just(report, "gradient", "held.weight")
    assert row_of(report, "held.weight")["aliases"] == "free.weight"


@LOOKS
def test_a_tied_table_that_the_forward_pass_of_either_owner_writes_is_told(every):
    table = nn.Embedding(9, 3, max_norm=0.1).requires_grad_(False)
    head = linear(3, 9).requires_grad_(False)
    table.weight = head.weight
    model = layers(free=nn.Identity(), table=table, middle=linear(3, 3), head=head)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["head"], optimizer, every) as report:
        train(model, optimizer, batches=lambda number: torch.tensor([number, number + 4]))
    assert just(report, "forward_write", "table.weight")


MOVES_ONCE = {
    "gradient": lambda model, optimizer: model.leaky.requires_grad_(True),
    "outside_write": lambda model, optimizer: write(model.leaky.weight),
    "scheduler": lambda model, optimizer: (model.leaky.requires_grad_(True), optimizer.param_groups[0].update(lr=LR)),
}


@pytest.mark.parametrize("cause", MOVES_ONCE)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_where_every_step_is_watched_the_first_write_is_told_though_it_is_the_only_one(cause, at):
    model = net()
    freeze(model.leaky)
    optimizer = SGD(as_groups(model, 0.0 if cause == "scheduler" else LR), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every=1) as report:
        for step in range(1, 8):
            if step == at:
                MOVES_ONCE[cause](model, optimizer)
            train(model, optimizer, steps=1)
            freeze(model.leaky)
    assert just(report, cause, "leaky.weight")


@LOOKS
@pytest.mark.parametrize("steps", [2, 4, 5])
def test_the_first_step_after_a_freeze_in_the_audit_is_watched_whenever_the_next_look_is(steps, every):
    model = net()
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, steps=steps)
        model.leaky.requires_grad_(False)  # and its gradient is forgotten there
        report.freeze(["leaky", "held"])
        optimizer.step()
        train(model, optimizer, steps=6)
    assert just(report, "gradient", "leaky.weight")


def test_a_write_in_the_forward_pass_does_not_hide_what_the_same_step_moves_first():
    model = net(norm=nn.BatchNorm1d(2, affine=False))
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, select(model, ["leaky", "norm"], buffers="frozen"), optimizer, every=1) as report:
        train(model, optimizer, steps=1)
    assert leaks(report) == {"leaky.weight": "gradient", **{f"norm.{name}": "forward_write" for name in STATISTICS}}


@LOOKS
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("to_none", [True, False], ids=["to None", "to zeros"])
def test_gradients_that_are_cleared_at_the_end_of_the_loops_body_hide_no_cause(to_none, steps, every):
    model = net()
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train(model, optimizer, steps=steps, after=lambda: optimizer.zero_grad(set_to_none=to_none))
    assert just(report, "gradient", "leaky.weight")


def test_a_leak_found_at_the_end_is_told_from_the_gradients_that_are_still_there():
    model = net()
    optimizer = SGD(model.parameters(), lr=LR)
    freeze(model.leaky)
    with audit(model, ["leaky", "held"], optimizer) as report:
        train(model, optimizer, steps=2)
        model.leaky.requires_grad_(True)
        train(model, optimizer, steps=1)
    assert report.looks == [1, 2, 3]
    assert just(report, "gradient", "leaky.weight")


# Optimizers nobody has heard of


@LOOKS
@pytest.mark.parametrize("of", HEARD_OF_BY_NOBODY)
def test_a_gradient_is_told_under_optimizers_nobody_has_heard_of(of, every):
    model = net()
    optimizer = of(model.parameters())
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        (train_with_closures if of is NeedsClosure else train)(model, optimizer)
    assert just(report, "gradient", "leaky.weight")


@LOOKS
def test_a_gradient_is_told_where_a_step_climbs_first_and_clears_the_gradients_on_its_way(every):
    model = net()
    optimizer = Climbs(model.parameters())
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train_with_closures(model, optimizer)
    assert just(report, "gradient", "leaky.weight")


@LOOKS
@pytest.mark.parametrize(
    ("of", "cause"),
    [
        (Velocity, "optimizer_state"),
        (VelocityById, "optimizer_state"),
        (FromTheStart, "optimizer_state"),
        (ahead, "optimizer_state"),
        (Pair, "optimizer_state"),
        (decaying, "weight_decay"),
        (spoiling, "weight_decay"),
        (Drift, "optimizer_rule"),
        (Noise, "optimizer_rule"),
        (Signs, None),
        (Normed, None),
    ],
)
def test_what_they_do_on_gradients_of_zeros_after_a_freeze_is_told_too(of, cause, every):
    model = net()
    optimizer = of(model.parameters())
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
        freeze(model.leaky, to_zeros=True)
        report.freeze(["leaky", "held"])
        train(model, optimizer, steps=5, to_none=False)
    assert just(report, cause, *(["leaky.weight"] if cause else []))


@LOOKS
@pytest.mark.parametrize(
    ("of", "error"),
    [
        (Locked, "TypeError: cannot pickle '_thread.lock' object"),
        (Bound, "TypeError: its stepping is a function, which a copy would call on what is real"),
    ],
)
def test_what_cannot_be_copied_trains_on_and_the_reason_is_told(of, error, every):
    models = net(), net()
    optimizers = of(models[0].parameters()), Mine(models[1].parameters())
    with audit(models[0], ["leaky", "held"], optimizers[0], every) as report:
        train(models[0], optimizers[0])
    train(models[1], optimizers[1])
    assert leaks(report) == {"leaky.weight": "unknown"}
    assert report.notes == [
        f"the cause is unknown for leaky.weight: a step of {of.__name__} could not be replayed ({error})"
    ]
    assert same(list(models[0].parameters()), list(models[1].parameters()))


@LOOKS
def test_a_step_that_takes_something_else_than_a_closure_gets_it(every):
    models = net(), net()
    for model in models:
        optimizer = NeedsLoss(model.parameters())
        with audit(model, ["leaky", "held"], optimizer, every) if model is models[0] else nullcontext() as report:
            for _ in range(3):
                optimizer.step(pass_through(model, optimizer).detach())
        if report:
            assert leaks(report) == {"leaky.weight": "unknown"}
            assert "could not be replayed (TypeError" in report.notes[0]
    assert same(list(models[0].parameters()), list(models[1].parameters()))


@LOOKS
def test_a_state_that_a_copy_cannot_find_is_not_taken_for_a_write_from_outside(every):
    model = net()
    optimizer = WeakVelocity(model.parameters())
    train(model, optimizer, to_none=False)
    freeze(model.leaky, to_zeros=True)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert leaks(report) == {"leaky.weight": "unknown"}
    assert report.notes == [
        "the cause is unknown for leaky.weight: the step moves it, and a replay of the step on copies does not"
    ]


# Seeking a cause changes nothing


def same(one, other):
    """Whether two things hold the same values, tensors to the bit."""
    left, right = tree_leaves(one), tree_leaves(other)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(left, right, strict=True)
    )


def chance():
    return torch.get_rng_state(), hash(random.getstate()), numpy.random.get_state()[1].tobytes()


def hooks(model, *optimizers):
    """How many hooks there are of each kind: of modules, tensors and optimizers, and those that torch keeps for all."""
    kept = [vars(one) for one in (every_module, sys.modules[Optimizer.__module__], *model.modules(), *optimizers)]
    of_tensors = [(one._backward_hooks, one._post_accumulate_grad_hooks) for one in model.parameters()]
    counts = [
        (key, len(some)) for names in kept for key, some in names.items() if "_hooks" in key and isinstance(some, dict)
    ]
    return counts, [len(some or ()) for pair in of_tensors for some in pair]


def with_dropout():
    seed()
    return layers(
        leaky=linear(3, 8),
        norm=nn.BatchNorm1d(8),
        bend=nn.Tanh(),
        drop=nn.Dropout(0.5),
        held=linear(8, 8).requires_grad_(False),
        free=linear(8, 2),
    )


def left_by(of, training, watched, every, scheduled=False):
    """All that a training with dropout leaves behind, and the report of a watch that has causes to seek."""
    random.seed(0)
    numpy.random.seed(0)
    model = with_dropout()
    optimizer = of(model.parameters())
    after = lr_scheduler.ExponentialLR(optimizer, 0.9).step if scheduled else lambda: None
    frozen = select(model, ["leaky", "held", "norm"], buffers="frozen")
    with audit(model, frozen, optimizer, every) if watched else nullcontext() as report:
        for _ in range(5):
            training(model, optimizer, steps=1)
            after()
    state = {key: value for key, value in vars(optimizer).items() if isinstance(value, (dict, list))}
    gradients = [parameter.grad for parameter in model.parameters()]
    tensors = [*model.parameters(), *model.buffers()]
    modes = [(tensor.requires_grad, tensor._version) for tensor in tensors]
    inner = [one.state_dict() for one in tree_leaves(vars(optimizer)) if isinstance(one, Optimizer)]
    plain = [leaf for leaf in tree_leaves(state) if isinstance(leaf, (torch.Tensor, int, float, str))]
    return [tensors, gradients, modes, plain, inner, optimizer.state_dict(), chance(), hooks(model, optimizer)], report


CHANGES_NOTHING = [
    (options(SGD, momentum=0.9, weight_decay=0.01), train),
    (options(Adam, foreach=True), train),
    (options(AdamW, fused=True), train),
    (options(Adam, amsgrad=True), train_with_closures),
    (options(torch.optim.LBFGS, max_iter=3), train_with_closures),
    (options(NeedsClosure), train_with_closures),
    *((one, train) for one in HEARD_OF_BY_NOBODY if one.id != "NeedsClosure"),
    *((options(one), train) for one in (Locked, Bound, WeakVelocity)),
    (options(Climbs), train_with_closures),
]
CHANGES_NOTHING = [pytest.param(*one.values, training, id=one.id) for one, training in CHANGES_NOTHING]


@LOOKS
@pytest.mark.parametrize(("of", "training"), CHANGES_NOTHING)
def test_seeking_causes_changes_no_bit_and_draws_no_number(of, training, every):
    alone, _ = left_by(of, training, watched=False, every=every)
    watched, report = left_by(of, training, watched=True, every=every)
    assert set(leaks(report)) == {"leaky.weight", "norm.weight", "norm.bias", *(f"norm.{name}" for name in STATISTICS)}
    for one, other in zip(alone, watched, strict=True):
        assert same(one, other)


@LOOKS
@pytest.mark.filterwarnings("error")
def test_seeking_causes_takes_no_step_in_a_schedulers_eyes(every):
    alone, _ = left_by(Noise, train, watched=False, every=every, scheduled=True)
    watched, report = left_by(Noise, train, watched=True, every=every, scheduled=True)
    assert row_of(report, "leaky.weight")["cause"] == "gradient"
    for one, other in zip(alone, watched, strict=True):
        assert same(one, other)


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


STOPS = {
    "in the forward pass": lambda model, optimizer: model.held.register_forward_pre_hook(stop),
    "in the backward pass": lambda model, optimizer: model.free.weight.register_hook(stop),
    "in the step": lambda model, optimizer: optimizer.register_step_pre_hook(stop),
    "after the step": lambda model, optimizer: optimizer.register_step_post_hook(stop),
}


@LOOKS
@pytest.mark.parametrize("training", [train, train_with_closures], ids=["step()", "step(closure)"])
@pytest.mark.parametrize("where", STOPS)
def test_no_hook_is_left_where_the_loop_raises_while_a_cause_is_sought(where, training, every):
    model = net(norm=nn.BatchNorm1d(2))
    optimizer = Adam(model.parameters(), lr=LR)
    was = hooks(model, optimizer)
    mine = []

    def stopped():
        with audit(model, select(model, ["leaky", "norm"], buffers="frozen"), optimizer, every) as report:
            training(model, optimizer, steps=1)
            assert hooks(model, optimizer) != was
            mine.extend([report, STOPS[where](model, optimizer)])
            training(model, optimizer, steps=1)

    with pytest.raises(Stop):
        stopped()
    report, hook = mine
    hook.remove()
    assert hooks(model, optimizer) == was
    assert leaks(report)["leaky.weight"] == "gradient"


def test_hooks_for_all_modules_are_there_only_while_a_cause_is_sought():
    model = net()
    optimizer = SGD(model.parameters(), lr=LR)
    was, seen = hooks(model), []
    with audit(model, ["leaky", "held"], optimizer):
        train(model, optimizer, after=lambda: seen.append(hooks(model) == was))
    assert seen == [False, True, True]


class Listening(TorchDispatchMode):
    """Notes the operations that torch does."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.heard.append(str(function))
        return function(*args, **(kwargs or {}))


def is_fast(layer, x):
    with Listening() as mode:
        features = layer(x)
    return "aten._transformer_encoder_layer_fwd.default" in mode.heard, features


def test_a_frozen_transformer_in_inference_mode_keeps_its_fast_path_and_its_bits_while_it_is_watched():
    seed()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    model, x = layers(layer=layer, free=nn.Linear(8, 1)), torch.randn(4, 5, 8)
    optimizer, outcomes = SGD(model.free.parameters(), lr=LR), [is_fast(layer, x)]
    with audit(model, ["layer"], optimizer, every=1) as report:
        for _ in range(3):
            outcomes.append(is_fast(layer, x))
            optimizer.zero_grad()
            model.free(outcomes[-1][1]).square().mean().backward()
            optimizer.step()
    assert all(fast and torch.equal(features, outcomes[0][1]) for fast, features in outcomes)
    assert report.leaks == []
    layer.register_forward_pre_hook(lambda *_: None)
    assert not is_fast(layer, x)[0]  # what a hook of the layer's own would have done

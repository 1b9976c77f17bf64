"""Causes of leaks: for each cause a training loop with just that cause, and that tracing changes nothing."""

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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from runner import audit
from runner.freezing.selection import select
from runner.proof.causes.leak_tracer import WRITTEN_BEFORE_EVERY_STEP

LR = 0.1
X = torch.tensor([[1.0, 0.5, -1.0], [0.25, -2.0, 1.0], [-0.5, 1.5, 2.0], [2.0, 0.0, -0.75]])


def layers(**modules):
    return nn.Sequential(OrderedDict(modules))


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def seed():
    torch.default_generator.manual_seed(0)  # torch.manual_seed also seeds other devices, which takes milliseconds


def small_net(**more):
    """A layer that will leak, one that is frozen and holds, and one that trains; all weights are matrices, for Muon."""
    seed()
    model = layers(leaky=linear(3, 2), tanh1=nn.Tanh(), held=linear(2, 2), tanh2=nn.Tanh(), free=linear(2, 2), **more)
    model.held.requires_grad_(False)
    return model


def lbfgs(params, lr=LR):
    return torch.optim.LBFGS(params, lr=lr, max_iter=4)


def two_groups(model, lr):
    """Two parameter groups; the layer that will leak is in the first one, with this learning rate."""
    return [{"params": model.leaky.parameters(), "lr": lr}, {"params": [*model[2].parameters(), *model[4].parameters()]}]


def compute_gradients(model, optimizer, to_none=True, x=X):
    """Clear the gradients and compute new ones, as a closure does; return the loss."""
    optimizer.zero_grad(set_to_none=to_none)
    loss = model(x).square().mean()
    loss.backward()
    return loss


def train(model, *optimizers, steps=3, to_none=True, after=lambda: None, batches=lambda number: X):
    """A plain training loop in which several optimizers take turns; `after` is called after each step."""
    for number in range(steps):
        optimizer = optimizers[number % len(optimizers)]
        compute_gradients(model, optimizer, to_none, batches(number))
        optimizer.step()
        after()


def train_with_closures(model, optimizer, steps=3, batches=lambda number: X):
    for number in range(steps):
        optimizer.step(lambda number=number: compute_gradients(model, optimizer, x=batches(number)))


def freeze(module, to_zeros=False):
    """Freeze a module as users do in the middle of training, and set its gradients to None or to zeros."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = torch.zeros_like(parameter) if to_zeros else None
    return module


def audit_freezing_after_some_steps(make_optimizer, every, steps=3):
    """Audit a training in which `leaky` is frozen after 3 steps, its gradient set to zeros; then come `steps` more."""
    model = small_net()
    optimizer = make_optimizer(model.parameters())
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
        freeze(model.leaky, to_zeros=True)
        report.freeze(["leaky", "held"])
        train(model, optimizer, steps=steps, to_none=False)
    return report


def write(tensor, value=None):
    with torch.no_grad():
        tensor.copy_(tensor + 1 if value is None else value)


def row_of(report, name):
    (row,) = [row for row in report.rows if row["name"] == name]
    return row


def leak_causes(report):
    return {row["name"]: row["cause"] for row in report.rows if row["verdict"] == "leaked"}


def is_only_leak(report, cause, *names):
    """Whether exactly these tensors leaked, all by this cause, and the report has no notes."""
    others = {(row["verdict"], row["cause"]) for row in report.rows if row["frozen"] and row["name"] not in names}
    assert leak_causes(report) == dict.fromkeys(names, cause)
    assert others <= {("held", "")}
    assert report.notes == []
    return True


def with_options(optimizer_class, **given):
    """A test parameter: an optimizer class with options."""
    text = ",".join(f"{key}={value}" for key, value in given.items())
    return pytest.param(
        lambda params, **more: optimizer_class(params, **{"lr": LR, **given, **more}),
        id=f"{optimizer_class.__name__}({text})",
    )


DENSE = [
    one
    for one in vars(torch.optim).values()
    if isinstance(one, type) and issubclass(one, Optimizer) and one not in (Optimizer, torch.optim.SparseAdam)
]
EVERY = pytest.mark.parametrize("every", [None, 1], ids=["powers of two", "every step"])


# Custom optimizers


class CustomOptimizer(Optimizer):
    """Base of the custom optimizers: calls `move` for each parameter that has a gradient."""

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


class FixedStepSize(CustomOptimizer):
    """Makes steps of a fixed size and ignores the learning rate."""

    def move(self, parameter, group):
        parameter.sub_(parameter.grad.sign(), alpha=0.01)


class AddsConstant(CustomOptimizer):
    """Adds a constant to the parameter, whatever its gradient."""

    def move(self, parameter, group):
        parameter.add_(group["lr"])


class AddsNoise(CustomOptimizer):
    """Adds random numbers of torch, numpy and Python."""

    def move(self, parameter, group):
        noise = torch.randn_like(parameter) + float(numpy.random.rand()) + random.random()
        parameter.sub_(parameter.grad + noise, alpha=group["lr"])


class Velocity(CustomOptimizer):
    """Momentum, kept in a dict attribute by parameter."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.velocity = {}

    def move(self, parameter, group):
        velocity = self.velocity.setdefault(parameter, torch.zeros_like(parameter))
        parameter.sub_(velocity.mul_(0.9).add_(parameter.grad), alpha=group["lr"])


class VelocityById(Velocity):
    """Momentum, kept in a dict attribute by the id of the parameter."""

    def move(self, parameter, group):
        velocity = self.velocity.setdefault(id(parameter), torch.zeros_like(parameter))
        parameter.sub_(velocity.mul_(0.9).add_(parameter.grad), alpha=group["lr"])


class WeakVelocity(Velocity):
    """Momentum, kept in a weak dict, where a copy of the parameter has none."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.velocity = WeakTensorKeyDictionary()


class StateFromInit(CustomOptimizer):
    """Momentum whose state is created in `__init__`, as in Adagrad."""

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


class Lookahead(Optimizer):
    """Wraps another optimizer; every second step averages the parameters with older ones."""

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


class TwoInnerOptimizers(Optimizer):
    """Wraps two optimizers in a list: one for the first parameter, one for the others."""

    def __init__(self, params, lr=LR):
        params = list(params)
        super().__init__(params, {"lr": lr})
        self.both = [Velocity(params[:1], lr), Adam(params[1:], lr)]

    def step(self, closure=None):
        for one in self.both:
            one.step()


class DividesByTotalNorm(CustomOptimizer):
    """Divides each gradient by the norm of all gradients."""

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt()
        for parameter in parameters:
            parameter.sub_(parameter.grad / norm, alpha=self.param_groups[0]["lr"])


class NeedsClosure(CustomOptimizer):
    """Requires a closure."""

    @torch.no_grad()
    def step(self, closure):
        return super().step(closure)


class SharpnessAware(CustomOptimizer):
    """As SAM: moves along the gradient, computes gradients there, and steps with them from the old position."""

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("give a closure")
        closure = torch.enable_grad()(closure)
        loss, parameters = closure(), [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        starts = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.add_(parameter.grad, alpha=0.05)
        self.zero_grad()
        closure()
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.copy_(start).sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
        return loss


class TakesLoss(CustomOptimizer):
    """Takes the loss itself instead of a closure, and scales its steps by it."""

    @torch.no_grad()
    def step(self, loss):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad * loss, alpha=group["lr"])


class DecayNamedWd(CustomOptimizer):
    """Has an option `wd` for weight decay."""

    def move(self, parameter, group):
        parameter.sub_(parameter.grad + group["wd"] * parameter, alpha=group["lr"])


class DecayAddedToGradient(CustomOptimizer):
    """Adds the weight decay to the gradient in place."""

    def move(self, parameter, group):
        parameter.sub_(parameter.grad.add_(parameter, alpha=group["weight_decay"]), alpha=group["lr"])


class ClearsGradients(CustomOptimizer):
    """Sets the gradients to None in its step."""

    def move(self, parameter, group):
        super().move(parameter, group)
        parameter.grad = None


class CannotBeCopied(CustomOptimizer):
    """Has an attribute that cannot be copied."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.lock = threading.Lock()


class HoldsFunction(CustomOptimizer):
    """Has a function that refers to the optimizer: called by a copy, it would step the real parameters."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.stepping = lambda: CustomOptimizer.step(self)

    def step(self, closure=None):
        self.stepping()


def lookahead(params, lr=LR):
    return Lookahead(Adam(params, lr=lr))


def with_decay_named_wd(params, lr=LR):
    return DecayNamedWd(params, lr, wd=0.1)


def with_decay_added_to_gradient(params, lr=LR):
    return DecayAddedToGradient(params, lr, weight_decay=0.1)


CUSTOM_OPTIMIZERS = [
    FixedStepSize, AddsConstant, AddsNoise, Velocity, VelocityById, StateFromInit, lookahead, TwoInnerOptimizers,
    DividesByTotalNorm, NeedsClosure, with_decay_named_wd, with_decay_added_to_gradient, ClearsGradients
]  # fmt: skip
CUSTOM_OPTIMIZERS = [pytest.param(one, id=one.__name__) for one in CUSTOM_OPTIMIZERS]


# Each cause, in a training loop with just that cause


@EVERY
@pytest.mark.parametrize("make_optimizer", DENSE)
def test_a_gradient_is_the_cause_if_only_the_audit_declares_a_layer_frozen_with_every_optimizer(make_optimizer, every):
    model = small_net()
    optimizer = make_optimizer(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        (train_with_closures if make_optimizer is torch.optim.LBFGS else train)(model, optimizer)
    assert is_only_leak(report, "gradient", "leaky.weight")


@EVERY
@pytest.mark.parametrize(
    "make_optimizer",
    [
        with_options(AdamW, weight_decay=0.1),
        with_options(SGD, weight_decay=0.1),
        with_options(torch.optim.Adagrad, weight_decay=0.1),
        with_options(torch.optim.RMSprop, weight_decay=0.1),
        with_options(torch.optim.Adadelta, weight_decay=0.1),
    ],
)
def test_weight_decay_is_the_cause_if_the_gradient_is_zero(make_optimizer, every):
    model = small_net()
    freeze(model.leaky, to_zeros=True)
    optimizer = make_optimizer(model.parameters())
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert is_only_leak(report, "weight_decay", "leaky.weight")


STATE_CAUSES = [
    (with_options(Adam), "optimizer_state"),
    (with_options(AdamW, weight_decay=0.0), "optimizer_state"),
    (with_options(SGD, momentum=0.9), "optimizer_state"),
    (with_options(torch.optim.RMSprop, momentum=0.9), "optimizer_state"),
    (with_options(torch.optim.Adamax), "optimizer_state"),
    (with_options(torch.optim.NAdam), "optimizer_state"),
    (with_options(torch.optim.RAdam), "optimizer_state"),
    (with_options(Adam, weight_decay=0.1), "weight_decay|optimizer_state"),
    (with_options(AdamW, weight_decay=0.1), "weight_decay|optimizer_state"),
    (with_options(SGD, momentum=0.9, weight_decay=0.1), "weight_decay|optimizer_state"),
]
STATE_CAUSES = [pytest.param(*one.values, cause, id=one.id) for one, cause in STATE_CAUSES]


@EVERY
@pytest.mark.parametrize(("make_optimizer", "cause"), STATE_CAUSES)
def test_the_cause_is_found_if_a_layer_is_frozen_after_some_steps_and_the_audit_begins_then(make_optimizer, cause, every):
    model = small_net()
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, to_none=False)
    freeze(model.leaky, to_zeros=True)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert is_only_leak(report, cause, "leaky.weight")


@EVERY
@pytest.mark.parametrize(("make_optimizer", "cause"), STATE_CAUSES)
def test_the_cause_is_found_if_a_layer_is_frozen_after_some_steps_inside_the_audit(make_optimizer, cause, every):
    report = audit_freezing_after_some_steps(make_optimizer, every)
    assert is_only_leak(report, cause, "leaky.weight")


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_the_first_step_of_lbfgs_is_replayed_as_it_is_when_its_closure_was_called_once(line_search):
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=LR, max_iter=4, line_search_fn=line_search)
    with audit(model, ["leaky"], optimizer) as report:
        train_with_closures(model, optimizer)
    assert [(row["verdict"], row["cause"]) for row in report.rows if row["frozen"]] == [("leaked", "gradient")]
    assert not any(report.why_unknown.values())


@EVERY
@pytest.mark.parametrize("is_declared", [True, False])
def test_the_cause_is_found_if_lbfgs_arrives_in_the_first_step_and_moves_nothing_later(is_declared, every):
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=50)
    if not is_declared:
        optimizer.step(lambda: compute_gradients(model, optimizer))
        model.leaky.requires_grad_(False)
    with audit(model, ["leaky"], optimizer, every) as report:
        train_with_closures(model, optimizer)
    cause = "gradient" if is_declared else "optimizer_state"
    assert [(row["verdict"], row["cause"]) for row in report.rows if row["frozen"]] == [("leaked", cause)]


def test_the_state_of_lbfgs_moves_a_layer_whose_gradient_is_none():
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=LR, max_iter=2)
    train_with_closures(model, optimizer)
    freeze(model.leaky)
    with audit(model, None, optimizer) as report:
        train_with_closures(model, optimizer)
    assert is_only_leak(report, "optimizer_state", "leaky.weight")


@EVERY
@pytest.mark.parametrize("make_optimizer", [torch.optim.ASGD, AddsConstant, AddsNoise])
def test_an_optimizer_that_moves_parameters_without_gradient_decay_and_state_is_an_optimizer_rule(make_optimizer, every):
    model = small_net()
    freeze(model.leaky, to_zeros=True)
    optimizer = make_optimizer(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert is_only_leak(report, "optimizer_rule", "leaky.weight")


@EVERY
@pytest.mark.parametrize("make_optimizer", [torch.optim.Rprop, FixedStepSize])
@pytest.mark.parametrize(("lr", "cause"), [(0.0, "optimizer_ignores_lr"), (LR, "gradient")])
def test_an_optimizer_that_moves_parameters_at_learning_rate_zero_ignores_it(make_optimizer, lr, cause, every):
    model = small_net()
    optimizer = make_optimizer(two_groups(model, lr))
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train(model, optimizer)
    assert is_only_leak(report, cause, "leaky.weight")


def lambda_scheduler_of_old_rate(optimizer):
    """A scheduler that was built before the learning rate was set to 0, and will set the old rate again."""
    optimizer.param_groups[0]["lr"] = LR
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    optimizer.param_groups[0]["lr"] = 0.0
    return scheduler


SCHEDULERS = {
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, LR, total_steps=9),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, LR),
    "SWALR": lambda optimizer: swa_utils.SWALR(optimizer, LR),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 9, eta_min=0.01),
    "LambdaLR": lambda_scheduler_of_old_rate,
}


@EVERY
@pytest.mark.parametrize("scheduler_of", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.filterwarnings("error")
def test_the_scheduler_is_the_cause_if_it_raises_a_learning_rate_of_zero(scheduler_of, every):
    model = small_net()
    optimizer = SGD(two_groups(model, 0.0), lr=LR, momentum=0.9)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        scheduler = scheduler_of(optimizer)
        train(model, optimizer, steps=9, after=scheduler.step)
    assert is_only_leak(report, "scheduler", "leaky.weight")


@EVERY
def test_the_scheduler_is_not_the_cause_if_the_tensor_moves_at_learning_rate_zero_too(every):
    model = small_net()
    optimizer = FixedStepSize(two_groups(model, 0.0))
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        scheduler = lr_scheduler.OneCycleLR(optimizer, LR, total_steps=9, cycle_momentum=False)
        train(model, optimizer, steps=4, after=scheduler.step)
    assert is_only_leak(report, "optimizer_ignores_lr", "leaky.weight")


def test_the_gradient_is_the_cause_if_a_scheduler_only_lowers_the_learning_rate():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer) as report:
        train(model, optimizer, after=lr_scheduler.ExponentialLR(optimizer, 0.5).step)
    assert is_only_leak(report, "gradient", "leaky.weight")


class ReassignsBuffer(nn.Module):
    """Replaces its buffer by a new tensor in every forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return x


class WritesChildWeight(nn.Module):
    """Writes to the weight of a child that it does not call."""

    def __init__(self):
        super().__init__()
        self.child = linear(2, 2).requires_grad_(False)

    def forward(self, x):
        write(self.child.weight)
        return x


class WritesForeignWeight(nn.Module):
    """Writes to the weight of a module that is neither its parent nor its child."""

    def __init__(self, other):
        super().__init__()
        self.reach = [other]

    def forward(self, x):
        write(self.reach[0].weight)
        return x


def embedding_net():
    seed()
    table = nn.Embedding(9, 3, max_norm=0.1).requires_grad_(False)
    return layers(table=table, leaky=linear(3, 2), held=linear(2, 2).requires_grad_(False), free=linear(2, 2))


def net_with_foreign_writer():
    model = small_net()
    return layers(stranger=WritesForeignWeight(model.held), **dict(model.named_children()))


STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]
WRITES_IN_FORWARD = {
    "Embedding(max_norm)": (embedding_net, "table", ["table.weight"]),
    "a buffer that is reassigned": (lambda: small_net(odd=ReassignsBuffer()), "odd", ["odd.seen"]),
    "a parent that writes": (lambda: small_net(odd=WritesChildWeight()), "odd", ["odd.child.weight"]),
    "a stranger that writes": (net_with_foreign_writer, "held", ["held.weight"]),
    "BatchNorm": (
        lambda: small_net(odd=nn.BatchNorm1d(2, affine=False)),
        "odd",
        [f"odd.{name}" for name in STATISTICS],
    ),
}
STEPS = {
    "step()": (SGD, train),
    "Adam.step(closure)": (Adam, train_with_closures),
    "LBFGS.step(closure)": (lbfgs, train_with_closures),
}


@EVERY
@pytest.mark.parametrize(("make_optimizer", "training"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("model_of", "frozen", "names"), WRITES_IN_FORWARD.values(), ids=WRITES_IN_FORWARD)
def test_a_write_in_a_forward_pass_is_the_cause_even_inside_an_optimizer_step(
    model_of, frozen, names, make_optimizer, training, every
):
    model = model_of()
    batches = (lambda number: torch.tensor([[number, number + 4]])) if hasattr(model, "table") else (lambda number: X)
    optimizer = make_optimizer(model.parameters(), lr=LR)
    with audit(model, select(model, [frozen], buffers="frozen"), optimizer, every) as report:
        training(model, optimizer, batches=batches)
    assert is_only_leak(report, "forward_write", *names)


def write_through_data(model):
    model.leaky.weight.data.mul_(0.5)


def load_changed_state(model):
    state = {name: tensor + 1 if name == "leaky.weight" else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)


def replace_parameter(model):
    model.leaky.weight = nn.Parameter(model.leaky.weight.detach() + 1, requires_grad=False)


WRITES_OUTSIDE = {
    "copy_": lambda model: write(model.leaky.weight),
    ".data": write_through_data,
    "load_state_dict": load_changed_state,
}


@EVERY
@pytest.mark.parametrize(
    ("writing", "cause"),
    [*((writing, "outside_write") for writing in WRITES_OUTSIDE.values()), (replace_parameter, "replaced")],
    ids=[*WRITES_OUTSIDE, "another parameter"],
)
def test_a_write_between_steps_is_an_outside_write_and_another_parameter_is_replaced(writing, cause, every):
    model = small_net()
    freeze(model.leaky)
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, after=lambda: writing(model))
    assert leak_causes(report) == {"leaky.weight": cause}


@EVERY
@pytest.mark.parametrize("hook", ["register_step_pre_hook", "register_step_post_hook"])
@pytest.mark.parametrize("when", ["before the audit", "in the audit"])
def test_a_write_in_a_step_hook_is_an_outside_write(hook, when, every):
    model = small_net()
    freeze(model.leaky)
    optimizer = Adam(model.parameters(), lr=LR)
    register = getattr(optimizer, hook)
    if when == "before the audit":
        register(lambda *_: write(model.leaky.weight))
    with audit(model, None, optimizer, every) as report:
        if when == "in the audit":
            register(lambda *_: write(model.leaky.weight))
        train(model, optimizer)
    assert is_only_leak(report, "outside_write", "leaky.weight")


def test_a_write_in_the_backward_pass_is_an_outside_write():
    model = small_net()
    freeze(model.leaky)
    model.free.weight.register_post_accumulate_grad_hook(lambda _: write(model.leaky.weight))
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer) as report:
        train(model, optimizer)
    assert is_only_leak(report, "outside_write", "leaky.weight")


def share_as_view(model):
    model.leaky.weight = nn.Parameter(model.free.weight.detach()[:1], requires_grad=False)


def share_as_data(model):
    freeze(model.leaky)
    model.leaky.weight.data = model.free.weight.data


@EVERY
@pytest.mark.parametrize("share", [share_as_view, share_as_data])
@pytest.mark.parametrize("inside", [True, False], ids=["and in the optimizer too", "and not in the optimizer"])
def test_a_frozen_tensor_that_shares_memory_with_a_trained_one_is_a_shared_tensor(share, inside, every):
    model = small_net()
    share(model)
    model.leaky.forward = lambda x: x[:, :2]
    optimizer = Adam(model.parameters() if inside else model.free.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer)
    assert is_only_leak(report, "shared_tensor", "leaky.weight")


HOW_TO_FIND_CAUSE = "use audit(every=1), or train until it changes again after the change was found"


WATCHED_FORWARD = pytest.mark.parametrize(
    "options", [{"every": 1}, {"watch_forward": True}, {}], ids=["every step", "watch_forward", "powers of two"]
)


@WATCHED_FORWARD
def test_a_write_in_the_forward_pass_of_the_only_step_is_found_if_forward_passes_are_watched(options):
    model = small_net(norm=nn.BatchNorm1d(2))
    freeze(model.norm)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, select(model, ["norm"], buffers="frozen"), optimizer, **options) as report:
        train(model, optimizer, steps=1)
    cause = "forward_write" if options else "unknown"
    assert leak_causes(report) == {f"norm.{name}": cause for name in STATISTICS}
    reason = "it was written by a forward pass or by other code: use every=1"
    unknown = [] if options else [f"the cause is unknown for norm.running_mean and 2 more: {reason}"]
    assert report.notes[:-1] == unknown
    assert report.notes[-1].startswith("in frozen modules 1 BatchNorm1d normalise by the batch")


@WATCHED_FORWARD
def test_an_embedding_that_is_written_in_the_first_forward_pass_only_is_found_if_forward_passes_are_watched(options):
    model = embedding_net()
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["table"], optimizer, **options) as report:
        train(model, optimizer, steps=5, batches=lambda number: torch.tensor([[0, 1]]))
    assert leak_causes(report) == {"table.weight": "forward_write" if options else "unknown"}


class WritesWhenAsked(nn.Module):
    """Writes to its weight in the next forward pass after `writes_next` was set."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.writes_next, self.how = False, "in place"

    def forward(self, x):
        if self.writes_next and self.how == "data":
            self.weight.data.add_(1)
        elif self.writes_next:
            write(self.weight)
        self.writes_next = False
        return x


def write_in_next_forward(model):
    model.odd.writes_next = True


@pytest.mark.parametrize(
    ("how", "cause"),
    [(write_in_next_forward, "forward_write"), (lambda model: write(model.odd.weight), "outside_write")],
    ids=["forward", "outside"],
)
def test_with_every_1_a_single_write_is_told_apart_from_one_in_a_forward_pass(how, cause):
    model = small_net(odd=WritesWhenAsked())
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every=1) as report:
        train(model, optimizer, steps=5)
        how(model)
        train(model, optimizer, steps=4)
    assert is_only_leak(report, cause, "odd.weight")


class CountComparisons(TorchFunctionMode):
    """Counts the calls of `torch.equal`, with which bits are compared where torch has several threads."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.equal
        return func(*args, **(kwargs or {}))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("optimizer_class", [SGD, Adam])
def test_with_every_1_a_frozen_parameter_is_read_once_a_step(optimizer_class):
    model = small_net()
    freeze(model.leaky, model.held)
    optimizer = optimizer_class(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every=1) as report:
        train(model, optimizer, steps=2)
        with CountComparisons() as comparisons:
            train(model, optimizer, steps=5)
    assert comparisons.count == 5 * 2
    assert not report.leaks


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("options", [{}, {"watch_forward": True}], ids=["without forward passes", "watch_forward"])
def test_at_a_later_freeze_what_was_frozen_before_is_compared_once_and_not_again_in_the_next_step(options):
    counts = []
    for more in range(2):
        model = small_net(**{f"frozen{number}": linear(2, 2).requires_grad_(False) for number in range(more)})
        optimizer = SGD(model.parameters(), lr=LR)
        with audit(model, None, optimizer, **options) as report:
            train(model, optimizer, steps=4)
            freeze(model.leaky)
            with CountComparisons() as comparisons:
                report.freeze(["leaky"])
                train(model, optimizer, steps=1)
        counts.append(comparisons.count)
    assert counts[1] == counts[0] + 1


@pytest.mark.usefixtures("two_threads")
def test_a_watched_forward_pass_compares_a_tensor_as_often_however_deep_in_the_model_it_is():
    counts = []
    for model in (small_net(), layers(outer=layers(inner=small_net()))):
        with audit(model, None, watch_forward=True), CountComparisons() as comparisons:
            train(model, SGD(model.parameters(), lr=LR), steps=1)
        counts.append(comparisons.count)
    assert counts[0] == counts[1]


def test_a_step_that_moves_what_was_frozen_before_only_when_more_is_frozen_has_its_cause():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, None, optimizer) as report:
        train(model, optimizer, steps=4)
        freeze(model.leaky)
        report.freeze(["leaky"])
        compute_gradients(model, optimizer)
        model.held.weight.grad = torch.ones_like(model.held.weight)  # left over from before it was frozen
        optimizer.step()
        train(model, optimizer, steps=6)
    assert is_only_leak(report, "gradient", "held.weight")


@pytest.mark.parametrize("options", [{}, {"watch_forward": True}], ids=["by version", "watch_forward"])
def test_a_single_write_through_data_in_a_forward_pass_is_told_apart_only_with_watch_forward(options):
    model = small_net(odd=WritesWhenAsked())
    model.odd.how = "data"
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every=1, **options) as report:
        train(model, optimizer, steps=5)
        model.odd.writes_next = True
        train(model, optimizer, steps=4)
    assert is_only_leak(report, "forward_write" if options else "outside_write", "odd.weight")


def merge_adapter(model):
    with torch.no_grad():
        model.leaky.weight.addmm_(torch.ones(model.leaky.weight.shape[0], 1), torch.ones(1, model.leaky.weight.shape[1]))


WRITES_ONCE = {
    **WRITES_OUTSIDE,
    "clamp": lambda model: write(model.leaky.weight, model.leaky.weight.clamp(-0.01, 0.01)),
    "reset": lambda model: write(model.leaky.weight, torch.zeros_like(model.leaky.weight)),
    "merge": merge_adapter,
}


@EVERY
@pytest.mark.parametrize("steps_after", [0, 1, 2, 9])
@pytest.mark.parametrize("writing", WRITES_ONCE.values(), ids=WRITES_ONCE)
def test_a_single_write_between_steps_or_after_the_last_step_is_an_outside_write(writing, steps_after, every):
    model = small_net()
    freeze(model.leaky)
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, steps=5)
        writing(model)
        train(model, optimizer, steps=steps_after)
    assert is_only_leak(report, "outside_write", "leaky.weight")


@EVERY
def test_a_single_write_by_hand_is_told_apart_from_the_steps_of_an_optimizer_that_has_the_tensor(every):
    model = small_net()
    optimizer = SGD([{"params": model.leaky.parameters(), "lr": 0.0}, {"params": model.free.parameters(), "lr": LR}])
    with audit(model, ["leaky"], optimizer, every) as report:
        train(model, optimizer, steps=5)
        write(model.leaky.weight)
        train(model, optimizer, steps=9)
    assert is_only_leak(report, "outside_write", "leaky.weight")


def test_without_an_optimizer_step_a_write_to_a_parameter_is_an_outside_write():
    model = small_net()
    with audit(model) as report:
        write(model.held.weight)
    assert is_only_leak(report, "outside_write", "held.weight")


# Loops of every kind


def net_with_every_cause():
    """Four frozen layers: three leak by different causes, one holds; and a layer that trains."""
    seed()
    names = ("with_gradient", "decayed", "with_state", "held")
    model = layers(**{name: linear(3, 3) for name in names}, norm=nn.BatchNorm1d(3, affine=False), free=linear(3, 2))
    for name in names[1:]:
        freeze(model.get_submodule(name), to_zeros=True)
    return model


@EVERY
@pytest.mark.parametrize("turns", [True, False], ids=["in turns", "all after each backward"])
def test_the_causes_are_found_with_several_optimizers(turns, every):
    model = net_with_every_cause()
    one = AdamW([*model.with_gradient.parameters(), *model.decayed.parameters()], lr=LR, weight_decay=0.1)
    other = SGD([*model.with_state.parameters(), *model.held.parameters()], lr=LR, momentum=0.9)
    third = Adam(model.free.parameters(), lr=LR)
    model.with_state.weight.grad = torch.ones(3, 3)
    other.step()
    with audit(model, select(model, ["**"], ["free"], "frozen"), [one, other, third], every) as report:
        for number in range(9):
            for optimizer in [one, other, third]:
                optimizer.zero_grad(set_to_none=False)
            model(X).square().mean().backward()
            for optimizer in [(one, other, third)[number % 3]] if turns else [one, other, third]:
                optimizer.step()
    assert leak_causes(report) == {
        "with_gradient.weight": "gradient",
        "decayed.weight": "weight_decay",
        "with_state.weight": "optimizer_state",
        **{f"norm.{name}": "forward_write" for name in STATISTICS},
    }
    assert row_of(report, "held.weight")["verdict"] == "held"
    assert report.notes == []


@EVERY
def test_an_accumulated_gradient_is_found_as_the_cause(every):
    model = small_net()
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        for _ in range(3):
            optimizer.zero_grad()
            for part in X.split(1):
                model(part).square().mean().backward()
            optimizer.step()
    assert is_only_leak(report, "gradient", "leaky.weight")


@EVERY
@pytest.mark.parametrize("make_optimizer", [SGD, Adam, lbfgs])
@pytest.mark.parametrize("keyword", [True, False], ids=["step(closure=...)", "step(...)"])
def test_a_gradient_that_a_closure_computes_in_the_step_is_found_as_the_cause(make_optimizer, keyword, every):
    model = small_net()
    optimizer, losses = make_optimizer(model.parameters(), lr=LR), []
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        for _ in range(3):
            closure = {"closure": lambda: compute_gradients(model, optimizer)}
            losses.append(optimizer.step(**closure) if keyword else optimizer.step(*closure.values()))
    assert is_only_leak(report, "gradient", "leaky.weight")
    assert all(isinstance(loss, torch.Tensor) for loss in losses)


@EVERY
def test_a_gradient_with_a_grad_scaler_is_found_as_the_cause(every):
    model = small_net()
    optimizer, scaler = SGD(model.parameters(), lr=LR), torch.amp.GradScaler("cpu", init_scale=8.0)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(X).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert is_only_leak(report, "gradient", "leaky.weight")


@EVERY
def test_a_write_in_a_recomputed_forward_pass_of_a_checkpoint_is_a_forward_write(every):
    model = small_net(odd=nn.BatchNorm1d(2, affine=False))
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, select(model, ["odd"], buffers="frozen"), optimizer, every) as report:
        for _ in range(3):
            optimizer.zero_grad()
            checkpoint(model, X.clone().requires_grad_(), use_reentrant=False).square().mean().backward()
            optimizer.step()
    assert is_only_leak(report, "forward_write", *(f"odd.{name}" for name in STATISTICS))


class Compiled(nn.Module):
    """Skips the hooks of its model, as a module from `torch.compile` does; importing that takes seconds."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def forward(self, x):
        return self._orig_mod.forward(x)


@EVERY
@pytest.mark.parametrize("audited", ["the model", "the compiled model"])
def test_hooks_on_modules_are_not_set_if_the_audited_model_is_compiled(audited, every):
    model = small_net(odd=WritesChildWeight())
    compiled = Compiled(model)
    optimizer = SGD(model.parameters(), lr=LR)
    watched, prefix = (model, "") if audited == "the model" else (compiled, "_orig_mod.")
    with audit(watched, ["leaky", "odd"], optimizer, every) as report:
        train(compiled, optimizer)
    cause = "forward_write" if audited == "the model" else "unknown"
    assert leak_causes(report) == {f"{prefix}leaky.weight": "gradient", f"{prefix}odd.child.weight": cause}
    assert [WRITTEN_BEFORE_EVERY_STEP in note for note in report.notes] == [True] * (audited != "the model")


def vmap_over_two_copies(model):
    stacked = {name: torch.stack([tensor.detach(), tensor.detach() + 1]) for name, tensor in model.named_parameters()}
    torch.func.vmap(lambda tensors: torch.func.functional_call(model, tensors, (X,)))(stacked)


@EVERY
@pytest.mark.parametrize(
    "passing",
    [
        lambda model: torch.func.functional_call(model, {"leaky.weight": model.leaky.weight + 1}, (X,)),
        vmap_over_two_copies,
    ],
    ids=["functional_call", "vmap"],
)
def test_a_forward_pass_with_substituted_tensors_is_not_a_write(passing, every):
    model = small_net()
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train(model, optimizer, after=lambda: passing(model))
    assert is_only_leak(report, "gradient", "leaky.weight")


@EVERY
def test_a_write_after_a_failed_forward_pass_is_an_outside_write(every):
    model = small_net()
    freeze(model.leaky)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        for _ in range(3):
            with pytest.raises(RuntimeError):
                model(torch.ones(1, 7))
            write(model.leaky.weight)
            train(model, optimizer, steps=1)
    assert is_only_leak(report, "outside_write", "leaky.weight")


@EVERY
def test_a_tied_parameter_is_one_leak_under_its_first_name(every):
    model = small_net()
    model.free.weight = model.held.weight
    model.held.requires_grad_(True)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["free"], optimizer, every) as report:
        train(model, optimizer)
    assert report.notes.pop(0) == "free.weight is the same tensor as held.weight: both are frozen"
    assert is_only_leak(report, "gradient", "held.weight")
    assert row_of(report, "held.weight")["aliases"] == "free.weight"


@EVERY
def test_a_tied_embedding_that_the_forward_pass_of_one_owner_writes_is_a_forward_write(every):
    table = nn.Embedding(9, 3, max_norm=0.1).requires_grad_(False)
    head = linear(3, 9).requires_grad_(False)
    table.weight = head.weight
    model = layers(free=nn.Identity(), table=table, middle=linear(3, 3), head=head)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["head"], optimizer, every) as report:
        train(model, optimizer, batches=lambda number: torch.tensor([number, number + 4]))
    assert report.notes.pop(0) == "head.weight is the same tensor as table.weight: both are frozen"
    assert is_only_leak(report, "forward_write", "table.weight")


class PullsBack(SGD):
    """Moves each parameter to its first value in every third step."""

    def __init__(self, params, lr=0.0):
        super().__init__(params, lr=lr)
        self.first = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        if self.count % 3 == 0:
            for parameter, value in self.first:
                parameter.data.copy_(value)
                parameter.detach().add_(0)  # which raises the version


def test_a_write_after_the_last_step_is_not_blamed_on_an_optimizer_that_would_pull_the_tensor_back():
    model = small_net()
    optimizer = PullsBack(model.parameters())
    with audit(model, ["leaky.weight"], optimizer) as report:
        train(model, optimizer, steps=11)
        write(model.leaky.weight)
    assert leak_causes(report) == {"leaky.weight": "outside_write"}


class MovesSometimes(SGD):
    """Adds 1 to each parameter in step 3 only."""

    count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(float(self.count == 3))


def test_a_step_that_cannot_be_repeated_because_later_ones_move_nothing_is_the_reason_of_an_unknown_cause():
    model = small_net()
    optimizer = MovesSometimes(model.parameters(), lr=LR)
    with audit(model, ["leaky.weight"], optimizer) as report:
        train(model, optimizer, steps=4)
    reason = "a step between steps 2 and 4 moved it, but a replay of the last one does not, or it was written through .data"
    assert report.notes == [f"the cause is unknown for leaky.weight: {reason}: use every=1"]


def test_a_write_that_no_mark_shows_with_every_step_compared_names_the_option_that_finds_its_cause():
    def causes_and_notes(**options):
        model = small_net()
        groups = [{"params": [model.leaky.weight], "lr": 0.0}, {"params": model.free.parameters()}]
        optimizer = SGD(groups, lr=LR)
        with audit(model, ["leaky.weight"], optimizer, every=1, **options) as report:
            train(model, optimizer, steps=2)
            model.leaky.weight.data.add_(1)
            train(model, optimizer)
        return leak_causes(report), report.notes

    causes, (note, *_) = causes_and_notes()
    assert causes == {"leaky.weight": "unknown"}
    assert note.endswith("or it was written through .data: use every=1, watch_forward=True")
    assert causes_and_notes(watch_forward=True)[0] == {"leaky.weight": "outside_write"}


MOVES_ONCE = {
    "gradient": lambda model, optimizer: model.leaky.requires_grad_(True),
    "outside_write": lambda model, optimizer: write(model.leaky.weight),
    "scheduler": lambda model, optimizer: (model.leaky.requires_grad_(True), optimizer.param_groups[0].update(lr=LR)),
}


@pytest.mark.parametrize("cause", MOVES_ONCE)
@pytest.mark.parametrize("at", [1, 3, 5])
def test_with_every_1_the_cause_of_a_single_write_is_found(cause, at):
    model = small_net()
    freeze(model.leaky)
    optimizer = SGD(two_groups(model, 0.0 if cause == "scheduler" else LR), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every=1) as report:
        for step in range(1, 8):
            if step == at:
                MOVES_ONCE[cause](model, optimizer)
            train(model, optimizer, steps=1)
            freeze(model.leaky)
    assert is_only_leak(report, cause, "leaky.weight")


@EVERY
@pytest.mark.parametrize("steps", [2, 4, 5])
def test_the_first_step_after_a_freeze_in_the_audit_is_traced_whenever_the_next_comparison_is(steps, every):
    model = small_net()
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, steps=steps)
        model.leaky.requires_grad_(False)  # its gradient is not cleared
        report.freeze(["leaky", "held"])
        optimizer.step()
        train(model, optimizer, steps=6)
    assert is_only_leak(report, "gradient", "leaky.weight")


def test_a_forward_write_does_not_hide_a_gradient_in_the_same_step():
    model = small_net(norm=nn.BatchNorm1d(2, affine=False))
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, select(model, ["leaky", "norm"], buffers="frozen"), optimizer, every=1) as report:
        train(model, optimizer, steps=1)
    assert leak_causes(report) == {"leaky.weight": "gradient", **{f"norm.{name}": "forward_write" for name in STATISTICS}}


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("to_none", [True, False], ids=["to None", "to zeros"])
def test_the_cause_is_found_if_gradients_are_cleared_after_each_step(to_none, steps, every):
    model = small_net()
    optimizer = Adam(model.parameters(), lr=LR)
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train(model, optimizer, steps=steps, after=lambda: optimizer.zero_grad(set_to_none=to_none))
    assert is_only_leak(report, "gradient", "leaky.weight")


def test_the_cause_of_a_leak_found_at_the_end_is_found_from_the_remaining_gradients():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=LR)
    freeze(model.leaky)
    with audit(model, ["leaky", "held"], optimizer) as report:
        train(model, optimizer, steps=2)
        model.leaky.requires_grad_(True)
        train(model, optimizer, steps=1)
    assert report.looks == [1, 2, 3]
    assert is_only_leak(report, "gradient", "leaky.weight")


# Causes with custom optimizers


@EVERY
@pytest.mark.parametrize("make_optimizer", CUSTOM_OPTIMIZERS)
def test_a_gradient_is_found_as_the_cause_with_custom_optimizers(make_optimizer, every):
    model = small_net()
    optimizer = make_optimizer(model.parameters())
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        (train_with_closures if make_optimizer is NeedsClosure else train)(model, optimizer)
    assert is_only_leak(report, "gradient", "leaky.weight")


@EVERY
def test_a_gradient_is_found_as_the_cause_with_a_sharpness_aware_optimizer(every):
    model = small_net()
    optimizer = SharpnessAware(model.parameters())
    with audit(model, ["leaky", "held"], optimizer, every) as report:
        train_with_closures(model, optimizer)
    assert is_only_leak(report, "gradient", "leaky.weight")


@EVERY
@pytest.mark.parametrize(
    ("make_optimizer", "cause"),
    [
        (Velocity, "optimizer_state"),
        (VelocityById, "optimizer_state"),
        (StateFromInit, "optimizer_state"),
        (lookahead, "optimizer_state"),
        (TwoInnerOptimizers, "optimizer_state"),
        (with_decay_named_wd, "weight_decay"),
        (with_decay_added_to_gradient, "weight_decay"),
        (AddsConstant, "optimizer_rule"),
        (AddsNoise, "optimizer_rule"),
        (FixedStepSize, None),
        (DividesByTotalNorm, None),
    ],
)
def test_the_cause_is_found_with_custom_optimizers_and_gradients_of_zeros(make_optimizer, cause, every):
    report = audit_freezing_after_some_steps(make_optimizer, every, steps=5)
    assert is_only_leak(report, cause, *(["leaky.weight"] if cause else []))


@EVERY
@pytest.mark.parametrize(
    ("make_optimizer", "error"),
    [
        (CannotBeCopied, "TypeError: cannot pickle '_thread.lock' object"),
        (HoldsFunction, "TypeError: its stepping is a function, which would act on the real optimizer"),
    ],
)
def test_an_optimizer_that_cannot_be_copied_trains_on_and_a_note_gives_the_error(make_optimizer, error, every):
    models = small_net(), small_net()
    optimizers = make_optimizer(models[0].parameters()), CustomOptimizer(models[1].parameters())
    with audit(models[0], ["leaky", "held"], optimizers[0], every) as report:
        train(models[0], optimizers[0])
    train(models[1], optimizers[1])
    assert leak_causes(report) == {"leaky.weight": "unknown"}
    assert report.notes == [
        f"the cause is unknown for leaky.weight: a step of {make_optimizer.__name__} could not be replayed ({error})"
    ]
    assert equal_values(list(models[0].parameters()), list(models[1].parameters()))


@EVERY
def test_a_step_that_takes_the_loss_instead_of_a_closure_gets_it(every):
    models = small_net(), small_net()
    for model in models:
        optimizer = TakesLoss(model.parameters())
        with audit(model, ["leaky", "held"], optimizer, every) if model is models[0] else nullcontext() as report:
            for _ in range(3):
                optimizer.step(compute_gradients(model, optimizer).detach())
        if report:
            assert leak_causes(report) == {"leaky.weight": "unknown"}
            assert "could not be replayed (TypeError" in report.notes[0]
    assert equal_values(list(models[0].parameters()), list(models[1].parameters()))


@EVERY
def test_a_step_whose_replay_moves_nothing_gives_an_unknown_cause_and_not_an_outside_write(every):
    model = small_net()
    optimizer = WeakVelocity(model.parameters())
    train(model, optimizer, to_none=False)
    freeze(model.leaky, to_zeros=True)
    with audit(model, None, optimizer, every) as report:
        train(model, optimizer, to_none=False)
    assert leak_causes(report) == {"leaky.weight": "unknown"}
    assert report.notes == [
        "the cause is unknown for leaky.weight: the step moves it, but a replay of the step on copies does not"
    ]


# Tracing changes nothing


def equal_values(one, other):
    """Whether two nested values are equal."""
    left, right = tree_leaves(one), tree_leaves(other)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(left, right, strict=True)
    )


def random_states():
    return torch.get_rng_state(), hash(random.getstate()), numpy.random.get_state()[1].tobytes()


def hooks(model, *optimizers):
    """The number of hooks of each kind: of modules, tensors and optimizers, and the global ones."""
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
        tanh1=nn.Tanh(),
        drop=nn.Dropout(0.5),
        held=linear(8, 8).requires_grad_(False),
        free=linear(8, 2),
    )


def train_and_collect(make_optimizer, training, watched, every, scheduled=False):
    """Everything that a training with dropout changes, and the report of the audit that watched it, or None."""
    random.seed(0)
    numpy.random.seed(0)
    model = with_dropout()
    optimizer = make_optimizer(model.parameters())
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
    return [
        tensors,
        gradients,
        modes,
        plain,
        inner,
        optimizer.state_dict(),
        random_states(),
        hooks(model, optimizer),
    ], report


CHANGES_NOTHING = [
    (with_options(SGD, momentum=0.9, weight_decay=0.01), train),
    (with_options(Adam, foreach=True), train),
    (with_options(AdamW, fused=True), train),
    (with_options(Adam, amsgrad=True), train_with_closures),
    (with_options(torch.optim.LBFGS, max_iter=3), train_with_closures),
    (with_options(NeedsClosure), train_with_closures),
    *((one, train) for one in CUSTOM_OPTIMIZERS if one.id != "NeedsClosure"),
    *((with_options(one), train) for one in (CannotBeCopied, HoldsFunction, WeakVelocity)),
    (with_options(SharpnessAware), train_with_closures),
]
CHANGES_NOTHING = [pytest.param(*one.values, training, id=one.id) for one, training in CHANGES_NOTHING]


@EVERY
@pytest.mark.parametrize(("make_optimizer", "training"), CHANGES_NOTHING)
def test_tracing_changes_no_bit_and_draws_no_random_number(make_optimizer, training, every):
    unwatched, _ = train_and_collect(make_optimizer, training, watched=False, every=every)
    watched, report = train_and_collect(make_optimizer, training, watched=True, every=every)
    assert set(leak_causes(report)) == {"leaky.weight", "norm.weight", "norm.bias", *(f"norm.{name}" for name in STATISTICS)}
    for one, other in zip(unwatched, watched, strict=True):
        assert equal_values(one, other)


@EVERY
@pytest.mark.filterwarnings("error")
def test_tracing_is_not_counted_as_a_step_by_a_scheduler(every):
    unwatched, _ = train_and_collect(AddsNoise, train, watched=False, every=every, scheduled=True)
    watched, report = train_and_collect(AddsNoise, train, watched=True, every=every, scheduled=True)
    assert row_of(report, "leaky.weight")["cause"] == "gradient"
    for one, other in zip(unwatched, watched, strict=True):
        assert equal_values(one, other)


class Stop(Exception):
    pass


def raise_stop(*_):
    raise Stop


STOP_HOOKS = {
    "in the forward pass": lambda model, optimizer: model.held.register_forward_pre_hook(raise_stop),
    "in the backward pass": lambda model, optimizer: model.free.weight.register_hook(raise_stop),
    "in the step": lambda model, optimizer: optimizer.register_step_pre_hook(raise_stop),
    "after the step": lambda model, optimizer: optimizer.register_step_post_hook(raise_stop),
}


@EVERY
@pytest.mark.parametrize("training", [train, train_with_closures], ids=["step()", "step(closure)"])
@pytest.mark.parametrize("where", STOP_HOOKS)
def test_no_hook_is_left_if_the_loop_raises_while_leaks_are_traced(where, training, every):
    model = small_net(norm=nn.BatchNorm1d(2))
    optimizer = Adam(model.parameters(), lr=LR)
    hooks_before = hooks(model, optimizer)
    results = []

    def stopped():
        with audit(model, select(model, ["leaky", "norm"], buffers="frozen"), optimizer, every) as report:
            training(model, optimizer, steps=1)
            assert hooks(model, optimizer) != hooks_before
            results.extend([report, STOP_HOOKS[where](model, optimizer)])
            training(model, optimizer, steps=1)

    with pytest.raises(Stop):
        stopped()
    report, hook = results
    hook.remove()
    assert hooks(model, optimizer) == hooks_before
    assert leak_causes(report)["leaky.weight"] == "gradient"


def test_hooks_on_modules_exist_only_while_they_are_needed():
    model = small_net(odd=WritesChildWeight())
    freeze(model.odd)
    optimizer, seen = SGD(model.parameters(), lr=LR), []
    with audit(model, ["leaky", "odd"], optimizer) as report:
        train(model, optimizer, steps=5, after=lambda: seen.append(len(every_module._global_forward_hooks)))
    assert seen == [1, 0, 0, 0, 0]  # the look after step 1 finds what was written before the step
    assert leak_causes(report)["odd.child.weight"] == "forward_write"


class OperationRecorder(TorchDispatchMode):
    """Records the operations that torch runs."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.append(str(function))
        return function(*args, **(kwargs or {}))


def run_and_check_fast_path(layer, x):
    with OperationRecorder() as mode:
        features = layer(x)
    return "aten._transformer_encoder_layer_fwd.default" in mode.operations, features


def test_a_frozen_transformer_in_eval_mode_keeps_its_fast_path_and_its_bits_while_it_is_traced():
    seed()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    model, x = layers(layer=layer, free=nn.Linear(8, 1)), torch.randn(4, 5, 8)
    optimizer, outcomes = SGD(model.free.parameters(), lr=LR), [run_and_check_fast_path(layer, x)]
    with audit(model, ["layer"], optimizer, every=1) as report:
        for _ in range(3):
            outcomes.append(run_and_check_fast_path(layer, x))
            optimizer.zero_grad()
            model.free(outcomes[-1][1]).square().mean().backward()
            optimizer.step()
    assert all(fast and torch.equal(features, outcomes[0][1]) for fast, features in outcomes)
    assert report.leaks == []
    layer.register_forward_pre_hook(lambda *_: None)
    assert not run_and_check_fast_path(layer, x)[0]  # a hook on the layer itself disables the fast path


@pytest.mark.parametrize("place", ["model", "layer"])
@EVERY
def test_a_forward_hook_that_writes_is_a_forward_write_wherever_it_is(place, every):
    model = small_net()
    model.leaky.requires_grad_(False)
    hooked = model if place == "model" else model.leaky
    hooked.register_forward_hook(lambda *_: write(model.leaky.weight))
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["leaky.weight"], optimizer, every) as report:
        train(model, optimizer, steps=6)
    assert leak_causes(report) == {"leaky.weight": "forward_write"}
    assert len(hooked._forward_hooks) == 1


@EVERY
def test_a_write_between_the_forward_passes_of_a_model_with_hooks_is_an_outside_write(every):
    model = small_net()
    model.leaky.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    optimizer = SGD(model.parameters(), lr=LR)
    with audit(model, ["leaky.weight"], optimizer, every) as report:
        for _ in range(6):
            train(model, optimizer, steps=1)
            write(model.leaky.weight)
    assert leak_causes(report) == {"leaky.weight": "outside_write"}

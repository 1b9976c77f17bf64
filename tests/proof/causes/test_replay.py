"""A step replayed on copies has the same bits and causes as real steps of trainings that are repeated from the start."""

from __future__ import annotations

import copy
from functools import partial
from inspect import signature

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from runner.freezing.groups import group_lr
from runner.proof.causes.optimizer_copy import copy_optimizer, step_copy
from runner.proof.causes.replay import find_causes, gradient_kind, moved_tensors
from runner.seeding import preserve_random_state
from runner.tensors import memory_overlaps, same_bits
from tests.proof.causes.test_leak_tracer import (
    CUSTOM_OPTIMIZERS,
    DENSE,
    LR,
    CannotBeCopied,
    CustomOptimizer,
    HoldsFunction,
    NeedsClosure,
    Velocity,
    compute_gradients,
    equal_values,
    freeze,
    lookahead,
    random_states,
    small_net,
    two_groups,
    with_options,
)

LBFGS = torch.optim.LBFGS


def has_argument(make_optimizer, name):
    return name in signature(make_optimizer).parameters


def real_step(model, optimizer):
    """Make a real step from the current gradients; LBFGS and NeedsClosure get a closure without backward."""
    needs_closure = isinstance(optimizer, (LBFGS, NeedsClosure))
    optimizer.step(*([lambda: model(torch.ones(1, 3)).square().sum()] if needs_closure else []))


def trained(make_optimizer, params_of=nn.Module.parameters, steps=2):
    """A model and its optimizer after some real steps, with the gradients for the next one."""
    model = small_net()
    optimizer = make_optimizer(params_of(model))
    for _ in range(steps):
        compute_gradients(model, optimizer)
        real_step(model, optimizer)
    compute_gradients(model, optimizer)
    return model, optimizer


def tensors_in(value):
    """All tensors in nested dicts, lists and optimizers, including the parameters."""
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    inside = vars(value) if isinstance(value, Optimizer) else value
    inside = inside.values() if isinstance(inside, dict) else inside if isinstance(inside, (list, tuple)) else ()
    return [tensor for one in inside for tensor in tensors_in(one)]


def copy_of_everything(model, optimizer):
    """A copy of everything that a step or a replay might change."""
    tensors = [(p.detach().clone(), p._version, copy.deepcopy(p.grad)) for p in model.parameters()]
    plain = {name: value for name, value in vars(optimizer).items() if isinstance(value, (int, float, str))}
    hooks = [len(value) for name, value in vars(optimizer).items() if name.endswith("_hooks")]
    return [tensors, [one.clone() for one in tensors_in(optimizer)], len(optimizer.state), plain, hooks, random_states()]


def with_defaults():
    return [with_options(make_optimizer, **({"max_iter": 1} if make_optimizer is LBFGS else {})) for make_optimizer in DENSE]


def variants():
    """Every dense optimizer of torch with its defaults, and with each option that changes its step."""
    yield from with_defaults()
    for make_optimizer in DENSE:
        for flag in ("foreach", "fused", "maximize", "amsgrad", "nesterov", "centered", "decoupled_weight_decay"):
            if has_argument(make_optimizer, flag):
                yield with_options(
                    make_optimizer, **{flag: True}, **({"momentum": 0.9} if has_argument(make_optimizer, "momentum") else {})
                )
        if has_argument(make_optimizer, "weight_decay"):
            yield with_options(make_optimizer, weight_decay=0.1)
    yield with_options(LBFGS, max_iter=1, history_size=1)
    yield with_options(Adam, lr=torch.tensor(LR))


# The replay has the same bits


@pytest.mark.parametrize(
    ("make_optimizer", "scheduled"),
    [
        *(pytest.param(*one.values, False, id=one.id) for one in [*variants(), *CUSTOM_OPTIMIZERS]),
        *(pytest.param(*one.values, True, id=f"{one.id} scheduled") for one in [*with_defaults(), *CUSTOM_OPTIMIZERS]),
    ],
)
def test_a_step_of_a_copy_gives_the_same_bits_as_the_real_step_and_leaves_the_original_unchanged(make_optimizer, scheduled):
    model, optimizer = trained(make_optimizer)
    if scheduled:
        scheduler = lr_scheduler.StepLR(getattr(optimizer, "inner", optimizer), 1, 0.5)
        real_step(model, optimizer)
        scheduler.step()
        compute_gradients(model, optimizer)
    before = copy_of_everything(model, optimizer)
    with preserve_random_state():
        optimizer_copy, copy_of = copy_optimizer(optimizer)
        step_copy(optimizer_copy)
    assert equal_values(copy_of_everything(model, optimizer), before)
    real_step(model, optimizer)
    assert all(same_bits(copy_of[id(parameter)], parameter) for parameter in model.parameters())
    assert not equal_values(before[0], copy_of_everything(model, optimizer)[0])
    if not isinstance(optimizer, LBFGS):  # LBFGS also stores the loss
        assert equal_values(tensors_in(optimizer_copy), tensors_in(optimizer))


@pytest.mark.parametrize("make_optimizer", [*with_defaults(), *CUSTOM_OPTIMIZERS])
def test_a_copy_shares_no_memory_with_the_real_one(make_optimizer):
    _, optimizer = trained(make_optimizer)
    optimizer_copy, copy_of = copy_optimizer(optimizer)
    of_copy = [*tensors_in(optimizer_copy), *copy_of.values(), *(one.grad for one in copy_of.values())]
    of_real = tensors_in(optimizer)
    of_real += [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
    assert len(of_copy) >= len(of_real) > 0
    assert not any(memory_overlaps(one, other) for one in of_copy if one is not None for other in of_real)


def test_a_copy_of_lbfgs_steps_a_parameter_that_was_removed_from_its_group_as_the_real_one_does():
    model, optimizer = trained(with_options(LBFGS, max_iter=1).values[0])
    optimizer.param_groups[0]["params"] = [model.free.weight]
    optimizer_copy, copy_of = copy_optimizer(optimizer)
    step_copy(optimizer_copy)
    real_step(model, optimizer)
    assert len(copy_of) == 3
    assert all(same_bits(copy_of[id(parameter)], parameter) for parameter in model.parameters())


@pytest.mark.parametrize("make_optimizer", [Adam, lookahead])
def test_a_replay_calls_no_hooks_of_the_optimizer_or_its_inner_optimizers_and_a_real_step_does(make_optimizer):
    model, optimizer = trained(make_optimizer)
    called = []
    for one in (optimizer, getattr(optimizer, "inner", optimizer)):
        one.register_step_pre_hook(lambda *_: called.append("before"))
        one.register_step_post_hook(lambda *_: called.append("after"))
    assert moved_tensors(optimizer, {"leaky": model.leaky.weight}) == {"leaky"}
    assert called == []
    real_step(model, optimizer)
    assert called == ["before", "before", "after", "after"]


def test_a_replay_calls_no_global_optimizer_hooks():
    model, optimizer = trained(Adam)
    called = []
    hooks = [register_optimizer_step_pre_hook(lambda *_: called.append("before"))]
    hooks.append(register_optimizer_step_post_hook(lambda *_: called.append("after")))
    try:
        assert moved_tensors(optimizer, {"leaky": model.leaky.weight}) == {"leaky"}
    finally:
        for hook in hooks:
            hook.remove()
    assert called == []


# The replay finds the same causes


def without_state(optimizer):
    """A new optimizer with the same class and options, without state."""
    return type(optimizer)([{**group} for group in optimizer.param_groups])


def cause_by_real_steps(build_training, declared):
    """Why a step moves the first layer, by real steps of trainings that are repeated for each experiment."""

    def moves(lr=None, decay=None, fresh=False):
        model, optimizer = build_training()
        group = optimizer.param_groups[0]
        group.update(({} if lr is None else {"lr": lr}) | ({} if decay is None else {"weight_decay": decay}))
        was = model.leaky.weight.detach().clone()
        real_step(model, without_state(optimizer) if fresh else optimizer)
        return not same_bits(was, model.leaky.weight)

    model, optimizer = build_training()
    lr = group_lr(optimizer.param_groups[0])
    if not moves():
        return {}
    if model.leaky.weight.grad is not None and model.leaky.weight.grad.any():
        if lr != declared and not (moves(lr=declared) and moves(lr=declared, fresh=True)):
            return {"leaky": "scheduler"}
        return {"leaky": "optimizer_ignores_lr" if 0 in (lr, declared) else "gradient"}
    if not moves(decay=0.0):
        return {"leaky": "weight_decay"}
    if not moves(fresh=True):
        return {"leaky": "optimizer_state"}
    return {"leaky": "optimizer_rule" if moves(decay=0.0, fresh=True) else "weight_decay|optimizer_state"}


def before_third_step(make_optimizer, gradient, lr, decay):
    """A training after two steps, with this gradient and learning rate of the first layer for the third step."""
    kwargs = {"weight_decay": decay} if has_argument(make_optimizer, "weight_decay") else {}
    kwargs |= {"momentum": 0.9} if has_argument(make_optimizer, "momentum") else {}
    kwargs |= {"max_iter": 1} if make_optimizer is LBFGS else {}
    params_of = nn.Module.parameters if make_optimizer is LBFGS else partial(two_groups, lr=LR)
    model, optimizer = trained(partial(make_optimizer, **kwargs), params_of)
    optimizer.param_groups[0]["lr"] = lr
    if gradient != "present":
        freeze(model.leaky, to_zeros=gradient == "zero")
    return model, optimizer


STEPS = {
    "gradient": ("present", LR, LR, 0.0),
    "rate 0": ("present", 0.0, 0.0, 0.1),
    "rate raised": ("present", LR, 0.0, 0.0),
    "rate lowered": ("present", LR, 2 * LR, 0.0),
    "rate set to 0": ("present", 0.0, LR, 0.0),
    "zeros": ("zero", LR, LR, 0.0),
    "zeros, decay": ("zero", LR, LR, 0.1),
    "none": ("none", LR, LR, 0.1),
}


@pytest.mark.parametrize(("gradient", "lr", "declared", "decay"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("make_optimizer", DENSE)
def test_the_cause_is_the_same_as_by_real_steps_of_repeated_trainings(make_optimizer, gradient, lr, declared, decay):
    model, optimizer = before_third_step(make_optimizer, gradient, lr, decay)
    rates = [declared, *map(group_lr, optimizer.param_groups[1:])]
    before = copy_of_everything(model, optimizer)
    found = find_causes(optimizer, {"leaky": model.leaky.weight, "held": model.held.weight}, rates)
    assert found == cause_by_real_steps(partial(before_third_step, make_optimizer, gradient, lr, decay), declared)
    assert equal_values(copy_of_everything(model, optimizer), before)


@pytest.mark.parametrize("make_optimizer", DENSE)
def test_moved_tensors_are_exactly_those_that_the_real_step_moves(make_optimizer):
    model, optimizer = trained(make_optimizer)
    tensors = dict(model.named_parameters())
    tensors["elsewhere"] = torch.ones(2)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    moved = moved_tensors(optimizer, tensors)
    real_step(model, optimizer)
    assert moved == {name for name, tensor in tensors.items() if not same_bits(before[name], tensor)}
    assert moved == {"leaky.weight", "free.weight"}


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_line_search_sees_the_loss_decrease_along_the_gradient(search):
    model, optimizer = trained(with_options(LBFGS, max_iter=3, line_search_fn=search).values[0])
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [LR]) == {"leaky": "gradient"}


@pytest.mark.parametrize("group", [False, True], ids=["the same groups", "a group more"])
def test_the_declared_learning_rates_still_count_after_a_group_was_added(group):
    model = small_net()
    optimizer = SGD(model.leaky.parameters(), lr=LR)
    compute_gradients(model, optimizer)
    if group:
        optimizer.add_param_group({"params": model.free.parameters()})
    found = find_causes(optimizer, {"leaky": model.leaky.weight}, [0.0])
    assert found == {"leaky": "scheduler"}


# Optimizers that cannot be copied


@pytest.mark.parametrize(
    ("make_optimizer", "message"),
    [(CannotBeCopied, "cannot pickle"), (HoldsFunction, "its stepping is a function, which would act")],
)
def test_an_optimizer_that_cannot_be_copied_raises_before_anything_is_stepped(make_optimizer, message):
    model, optimizer = trained(make_optimizer)
    before = copy_of_everything(model, optimizer)
    with pytest.raises(TypeError, match=message):
        find_causes(optimizer, {"leaky": model.leaky.weight}, [LR])
    assert equal_values(copy_of_everything(model, optimizer), before)


class HoldsFunctionOfParameters(CustomOptimizer):
    """Has a function that refers to its parameters in a list."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.stepping = lambda: [parameter.data.add_(1) for parameter in parameters]

    def step(self, closure=None):
        self.stepping()


class HoldsFunctionOfMethod(CustomOptimizer):
    """Has a function that refers to one of its methods."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        method = super().step
        self.stepping = lambda: method()

    def step(self, closure=None):
        self.stepping()


@pytest.mark.parametrize("make_optimizer", [HoldsFunctionOfParameters, HoldsFunctionOfMethod])
def test_a_function_that_refers_to_the_real_parameters_or_a_method_raises_too(make_optimizer):
    model, optimizer = trained(make_optimizer)
    before = copy_of_everything(model, optimizer)
    with pytest.raises(TypeError, match="its stepping is a function"):
        copy_optimizer(optimizer)
    assert equal_values(copy_of_everything(model, optimizer), before)


class HoldsMethod(Velocity):
    """Has one of its methods as an attribute, which can be copied."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.stepping = super().step

    def step(self, closure=None):
        self.stepping()


def test_a_method_that_is_an_attribute_of_the_optimizer_steps_the_copy():
    model, optimizer = trained(HoldsMethod)
    before = copy_of_everything(model, optimizer)
    optimizer_copy, copy_of = copy_optimizer(optimizer)
    step_copy(optimizer_copy)
    assert equal_values(copy_of_everything(model, optimizer), before)
    real_step(model, optimizer)
    assert all(same_bits(copy_of[id(parameter)], parameter) for parameter in model.parameters())


# Gradients


def sparse(places):
    return torch.sparse_coo_tensor([places], [1.0, -1.0], (3,), check_invariants=True)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "none"),
        (torch.zeros(3), "zero"),
        (torch.full((3,), -0.0), "zero"),
        (torch.tensor([0.0, 1e-45, 0.0]), "present"),
        (torch.tensor([0.0, float("nan"), 0.0]), "present"),
        (torch.zeros(3).to_sparse(), "zero"),
        (sparse([1, 1]), "zero"),
        (sparse([1, 2]), "present"),
    ],
    ids=["none", "zeros", "negative zeros", "denormal", "nan", "sparse zeros", "sparse that cancels", "sparse"],
)
def test_the_kind_of_a_gradient_is_none_zero_or_present(value, word):
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = value
    assert gradient_kind(parameter) == word

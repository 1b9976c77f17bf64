"""A step replayed on copies, against real steps of trainings that are made anew for each: the same bits, the same causes."""

from __future__ import annotations

import copy
from functools import partial
from inspect import signature

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from runner.freezing.groups import rate
from runner.proof.replay import causes_in_step, copied, gradient, moved, step
from runner.seeding import kept_random_state
from runner.tensors import same_bits, share_memory
from tests.proof.test_witness import (
    DENSE,
    HEARD_OF_BY_NOBODY,
    LR,
    Bound,
    Locked,
    Mine,
    NeedsClosure,
    Velocity,
    ahead,
    as_groups,
    chance,
    freeze,
    net,
    options,
    pass_through,
    same,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LBFGS = torch.optim.LBFGS


def takes(of, name):
    return name in signature(of).parameters


def real_step(model, optimizer):
    """A step from the gradients that are there; a closure, where one is needed, makes no others."""
    needs_closure = isinstance(optimizer, (LBFGS, NeedsClosure))
    optimizer.step(*([lambda: model(torch.ones(1, 3)).square().sum()] if needs_closure else []))


def trained(of, params_of=nn.Module.parameters, steps=2):
    """A model and its optimizer after some real steps, and the gradients of the next one."""
    model = net()
    optimizer = of(params_of(model))
    for _ in range(steps):
        pass_through(model, optimizer)
        real_step(model, optimizer)
    pass_through(model, optimizer)
    return model, optimizer


def tensors_in(value):
    """All tensors of an optimizer, however deep in dicts, lists and other optimizers, its parameters among them."""
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    inside = vars(value) if isinstance(value, Optimizer) else value
    inside = inside.values() if isinstance(inside, dict) else inside if isinstance(inside, (list, tuple)) else ()
    return [tensor for one in inside for tensor in tensors_in(one)]


def left(model, optimizer):
    """A copy of all that a step, or what is around it, might change."""
    tensors = [(p.detach().clone(), p._version, copy.deepcopy(p.grad)) for p in model.parameters()]
    plain = {name: value for name, value in vars(optimizer).items() if isinstance(value, (int, float, str))}
    hooks = [len(value) for name, value in vars(optimizer).items() if name.endswith("_hooks")]
    return [tensors, [one.clone() for one in tensors_in(optimizer)], len(optimizer.state), plain, hooks, chance()]


def as_they_come():
    return [options(of, **({"max_iter": 1} if of is LBFGS else {})) for of in DENSE]


def variants():
    """Every dense optimizer of torch as it comes, in each of its implementations, and with what else changes its step."""
    yield from as_they_come()
    for of in DENSE:
        for flag in ("foreach", "fused", "maximize", "amsgrad", "nesterov", "centered", "decoupled_weight_decay"):
            if takes(of, flag):
                yield options(of, **{flag: True}, **({"momentum": 0.9} if takes(of, "momentum") else {}))
        if takes(of, "weight_decay"):
            yield options(of, weight_decay=0.1)
    yield options(LBFGS, max_iter=1, history_size=1)
    yield options(Adam, lr=torch.tensor(LR))


# The same bits


@pytest.mark.parametrize(
    ("of", "scheduled"),
    [
        *(pytest.param(*one.values, False, id=one.id) for one in [*variants(), *HEARD_OF_BY_NOBODY]),
        *(pytest.param(*one.values, True, id=f"{one.id} scheduled") for one in [*as_they_come(), *HEARD_OF_BY_NOBODY]),
    ],
)
def test_a_copys_step_gives_the_very_bits_that_the_real_one_then_gives_and_touches_nothing_of_it(of, scheduled):
    model, optimizer = trained(of)
    if scheduled:
        scheduler = lr_scheduler.StepLR(getattr(optimizer, "inner", optimizer), 1, 0.5)
        real_step(model, optimizer)
        scheduler.step()
        pass_through(model, optimizer)
    before = left(model, optimizer)
    with kept_random_state():
        twin, twin_of = copied(optimizer)
        step(twin)
    assert same(left(model, optimizer), before)
    real_step(model, optimizer)
    assert all(same_bits(twin_of[id(parameter)], parameter) for parameter in model.parameters())
    assert not same(before[0], left(model, optimizer)[0])
    if not isinstance(optimizer, LBFGS):  # which keeps the loss, too
        assert same(tensors_in(twin), tensors_in(optimizer))


@pytest.mark.parametrize("of", [*as_they_come(), *HEARD_OF_BY_NOBODY])
def test_a_copy_shares_no_memory_with_the_real_one(of):
    _, optimizer = trained(of)
    twin, twin_of = copied(optimizer)
    mine = [*tensors_in(twin), *twin_of.values(), *(one.grad for one in twin_of.values())]
    real = tensors_in(optimizer)
    real += [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
    assert len(mine) >= len(real) > 0
    assert not any(share_memory(one, other) for one in mine if one is not None for other in real)


def test_a_copy_steps_what_lbfgs_steps_though_its_group_holds_it_no_more():
    model, optimizer = trained(options(LBFGS, max_iter=1).values[0])
    optimizer.param_groups[0]["params"] = [model.free.weight]
    twin, twin_of = copied(optimizer)
    step(twin)
    real_step(model, optimizer)
    assert len(twin_of) == 3
    assert all(same_bits(twin_of[id(parameter)], parameter) for parameter in model.parameters())


@pytest.mark.parametrize("of", [Adam, ahead])
def test_a_replay_calls_no_hook_of_the_optimizer_nor_of_those_it_wraps_and_a_real_step_does(of):
    model, optimizer = trained(of)
    called = []
    for one in (optimizer, getattr(optimizer, "inner", optimizer)):
        one.register_step_pre_hook(lambda *_: called.append("before"))
        one.register_step_post_hook(lambda *_: called.append("after"))
    assert moved(optimizer, {"leaky": model.leaky.weight}) == {"leaky"}
    assert called == []
    real_step(model, optimizer)
    assert called == ["before", "before", "after", "after"]


def test_a_replay_calls_none_of_the_hooks_for_all_optimizers():
    model, optimizer = trained(Adam)
    called = []
    hooks = [register_optimizer_step_pre_hook(lambda *_: called.append("before"))]
    hooks.append(register_optimizer_step_post_hook(lambda *_: called.append("after")))
    try:
        assert moved(optimizer, {"leaky": model.leaky.weight}) == {"leaky"}
    finally:
        for hook in hooks:
            hook.remove()
    assert called == []


# The same causes


def made_anew(optimizer):
    """An optimizer of the same class and options that has no state yet."""
    return type(optimizer)([{**group} for group in optimizer.param_groups])


def told_by_hand(made, declared):
    """Why a step moves the first layer: each experiment is a real step of a training of its own."""

    def moves(lr=None, decay=None, fresh=False):
        model, optimizer = made()
        group = optimizer.param_groups[0]
        group.update(({} if lr is None else {"lr": lr}) | ({} if decay is None else {"weight_decay": decay}))
        was = model.leaky.weight.detach().clone()
        real_step(model, made_anew(optimizer) if fresh else optimizer)
        return not same_bits(was, model.leaky.weight)

    model, optimizer = made()
    lr = rate(optimizer.param_groups[0])
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


def at_the_step(of, now, lr, decay):
    """A training after two steps, with the first layer's gradient and rate as they are to be at the third."""
    given = {"weight_decay": decay} if takes(of, "weight_decay") else {}
    given |= {"momentum": 0.9} if takes(of, "momentum") else {}
    given |= {"max_iter": 1} if of is LBFGS else {}
    model, optimizer = trained(partial(of, **given), nn.Module.parameters if of is LBFGS else partial(as_groups, lr=LR))
    optimizer.param_groups[0]["lr"] = lr
    if now != "present":
        freeze(model.leaky, to_zeros=now == "zero")
    return model, optimizer


STEPS = {
    "gradient": ("present", LR, LR, 0.0),
    "rate 0": ("present", 0.0, 0.0, 0.1),
    "rate raised": ("present", LR, 0.0, 0.0),
    "rate lowered": ("present", LR, 2 * LR, 0.0),
    "rate put to 0": ("present", 0.0, LR, 0.0),
    "zeros": ("zero", LR, LR, 0.0),
    "zeros, decay": ("zero", LR, LR, 0.1),
    "none": ("none", LR, LR, 0.1),
}


@pytest.mark.parametrize(("now", "lr", "declared", "decay"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("of", DENSE)
def test_the_cause_is_the_one_that_real_steps_of_trainings_made_anew_tell(of, now, lr, declared, decay):
    model, optimizer = at_the_step(of, now, lr, decay)
    rates = [declared, *map(rate, optimizer.param_groups[1:])]
    before = left(model, optimizer)
    found = causes_in_step(optimizer, {"leaky": model.leaky.weight, "held": model.held.weight}, rates)
    assert found == told_by_hand(partial(at_the_step, of, now, lr, decay), declared)
    assert same(left(model, optimizer), before)


@pytest.mark.parametrize("of", DENSE)
def test_moved_names_just_what_the_real_step_then_moves(of):
    model, optimizer = trained(of)
    suspects = dict(model.named_parameters())
    suspects["elsewhere"] = torch.ones(2)
    was = {name: tensor.detach().clone() for name, tensor in suspects.items()}
    foreseen = moved(optimizer, suspects)
    real_step(model, optimizer)
    assert foreseen == {name for name, tensor in suspects.items() if not same_bits(was[name], tensor)}
    assert foreseen == {"leaky.weight", "free.weight"}


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_line_search_sees_the_loss_fall_along_the_gradient(search):
    model, optimizer = trained(options(LBFGS, max_iter=3, line_search_fn=search).values[0])
    assert causes_in_step(optimizer, {"leaky": model.leaky.weight}, [LR]) == {"leaky": "gradient"}


@pytest.mark.parametrize("group", [False, True], ids=["the same groups", "a group more"])
def test_the_rates_that_were_declared_still_count_when_a_group_was_added(group):
    model = net()
    optimizer = SGD(model.leaky.parameters(), lr=LR)
    pass_through(model, optimizer)
    if group:
        optimizer.add_param_group({"params": model.free.parameters()})
    found = causes_in_step(optimizer, {"leaky": model.leaky.weight}, [0.0])
    assert found == {"leaky": "scheduler"}


# What cannot be copied


@pytest.mark.parametrize(
    ("of", "said"),
    [(Locked, "cannot pickle"), (Bound, "its stepping is a function, which a copy would call")],
)
def test_what_cannot_be_copied_is_refused_before_anything_is_stepped(of, said):
    model, optimizer = trained(of)
    before = left(model, optimizer)
    with pytest.raises(TypeError, match=said):
        causes_in_step(optimizer, {"leaky": model.leaky.weight}, [LR])
    assert same(left(model, optimizer), before)


class Listed(Mine):
    """Holds a function that holds its parameters in a list."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.stepping = lambda: [parameter.data.add_(1) for parameter in parameters]

    def step(self, closure=None):
        self.stepping()


class OfAMethod(Mine):
    """Holds a function that holds a method of its own."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        method = super().step
        self.stepping = lambda: method()

    def step(self, closure=None):
        self.stepping()


@pytest.mark.parametrize("of", [Listed, OfAMethod])
def test_a_function_that_holds_the_real_parameters_or_a_method_is_refused_too(of):
    model, optimizer = trained(of)
    before = left(model, optimizer)
    with pytest.raises(TypeError, match="its stepping is a function"):
        copied(optimizer)
    assert same(left(model, optimizer), before)


class Method(Velocity):
    """Holds a method of its own, which goes with a copy."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.stepping = super().step

    def step(self, closure=None):
        self.stepping()


def test_a_method_that_an_optimizer_keeps_steps_the_copy():
    model, optimizer = trained(Method)
    before = left(model, optimizer)
    twin, twin_of = copied(optimizer)
    step(twin)
    assert same(left(model, optimizer), before)
    real_step(model, optimizer)
    assert all(same_bits(twin_of[id(parameter)], parameter) for parameter in model.parameters())


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
def test_a_gradient_is_absent_or_all_zero_or_present(value, word):
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = value
    assert gradient(parameter) == word

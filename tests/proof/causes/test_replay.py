"""A step replayed on copies has the same bits and causes as real steps of trainings that are repeated from the start."""

from __future__ import annotations

import copy
import math
from functools import partial
from inspect import signature

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from runner import audit
from runner.freezing.groups import group_lr
from runner.proof.causes.gradients import gradient_kind
from runner.proof.causes.optimizer_copy import copy_optimizer, skips, step_copy
from runner.proof.causes.replay import find_causes, moved_tensors, try_find_causes
from runner.seeding import preserve_random_state
from runner.tensors import memory_overlaps, same_bits
from tests.proof.causes.test_leak_tracer import (
    CUSTOM_OPTIMIZERS,
    DENSE,
    LR,
    AddsConstant,
    CannotBeCopied,
    CustomOptimizer,
    HoldsFunction,
    NeedsClosure,
    Velocity,
    audit_freezing_after_some_steps,
    compute_gradients,
    equal_values,
    freeze,
    leak_causes,
    lookahead,
    random_states,
    small_net,
    train,
    two_groups,
    with_options,
    write,
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


@pytest.mark.parametrize("make_optimizer", [*with_defaults(), *CUSTOM_OPTIMIZERS])
def test_a_step_moves_no_tensor_that_it_is_known_to_skip(make_optimizer):
    model, optimizer = trained(make_optimizer, steps=3)
    assert not any(skips(optimizer, parameter) for parameter in model.parameters() if parameter.grad is not None)
    model.leaky.weight.grad = None
    is_of_torch = type(optimizer).__module__.startswith("torch.") and not isinstance(optimizer, LBFGS)
    assert skips(optimizer, model.leaky.weight) == is_of_torch
    if is_of_torch:
        assert not moved_tensors(optimizer, {"leaky": model.leaky.weight})


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


# Trials that raise, and state outside `optimizer.state`


class NeedsItsState(CustomOptimizer):
    """Momentum and weight decay; it cannot step without the state that its first steps have made."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr, weight_decay=0.1)
        self.is_first = True

    def step(self, closure=None):
        super().step(closure)
        self.is_first = False

    def move(self, parameter, group):
        if self.is_first:
            self.state[parameter]["velocity"] = torch.zeros_like(parameter)
        if not self.is_first and not self.state[parameter].get("velocity", torch.zeros(1)).any():
            raise ValueError("no velocity")
        velocity = self.state[parameter]["velocity"].mul_(0.9).add_(parameter.grad)
        decay = 0 if parameter.shape[1] == 3 else group["weight_decay"]  # of all layers but the first one
        parameter.mul_(1 - group["lr"] * decay).sub_(velocity, alpha=group["lr"] if parameter.shape[1] == 3 else 0)


def test_a_trial_that_raises_keeps_the_causes_that_other_trials_have_found_and_names_itself():
    model, optimizer = trained(NeedsItsState)
    freeze(model.leaky, to_zeros=True)
    freeze(model.free, to_zeros=True)
    tensors = {"moved by state": model.leaky.weight, "decayed": model.free.weight}
    causes, error = try_find_causes(optimizer, tensors, [LR])
    assert causes == {"decayed": "weight_decay"}
    assert error == "NeedsItsState could not be stepped with fresh state (ValueError: no velocity)"


def test_a_trial_at_the_declared_rates_that_raises_leaves_the_tensors_with_a_gradient_unknown_and_no_others():
    class NeedsRate(AddsConstant):
        def move(self, parameter, group):
            parameter.add_(0.001 / group["lr"])

    model, optimizer = trained(NeedsRate)
    freeze(model.free, to_zeros=True)
    causes, error = try_find_causes(optimizer, {"one": model.leaky.weight, "other": model.free.weight}, [0.0])
    assert causes == {"other": "optimizer_rule"}
    assert (
        error == "NeedsRate could not be stepped at the declared learning rates (ZeroDivisionError: float division by zero)"
    )


def test_a_step_that_raises_with_nothing_changed_is_reported_as_not_replayed():
    class Raises(CustomOptimizer):
        def move(self, parameter, group):
            raise KeyError("momentum")

    model = small_net()
    optimizer = Raises(model.parameters())
    compute_gradients(model, optimizer)
    causes, error = try_find_causes(optimizer, {"leaky": model.leaky.weight}, [LR])
    assert (causes, error) == ({}, "a step of Raises could not be replayed (KeyError: 'momentum')")


class MasksFromInit(CustomOptimizer):
    """Momentum for the elements under a mask, which is made in `__init__`; it also counts steps in its state."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr)
        self.state["total_step"] = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["mask"] = torch.ones_like(parameter, dtype=torch.bool)

    def step(self, closure=None):
        self.state["total_step"] += 1
        return super().step(closure)

    def move(self, parameter, group):
        state = self.state[parameter]
        gradient = parameter.grad[state["mask"]]
        velocity = state.setdefault("velocity", torch.zeros_like(gradient)).mul_(0.9).add_(gradient)
        parameter[state["mask"]] -= velocity * group["lr"]


class AveragesSinceStart(CustomOptimizer):
    """Pulls to the average of all values, corrected by a count of steps that it keeps in the parameter group."""

    def move(self, parameter, group):
        average = self.state[parameter].setdefault("average", torch.zeros_like(parameter)).lerp_(parameter, 0.1)
        parameter.sub_(parameter - average / (1 - 0.9 ** group["step"]) + parameter.grad, alpha=group["lr"])

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        return super().step(closure)


class AveragesSinceStartByOption(AveragesSinceStart):
    """The same; its count of steps is in the defaults."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr, step=0)


@pytest.mark.parametrize("make_optimizer", [MasksFromInit, AveragesSinceStart, AveragesSinceStartByOption])
@pytest.mark.parametrize("every", [None, 1])
def test_fresh_state_keeps_masks_and_sets_back_the_counts_of_steps_in_parameter_groups(make_optimizer, every):
    report = audit_freezing_after_some_steps(make_optimizer, every)
    assert leak_causes(report) == {"leaky.weight": "optimizer_state"}
    assert report.notes == []


class NeedsMoreInFirstStep(CustomOptimizer):
    """Momentum; its first step, by a count in the parameter group, needs gradients that can be differentiated again."""

    def move(self, parameter, group):
        velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter)).mul_(0.9).add_(parameter.grad)
        parameter.sub_(velocity + group["pull"], alpha=group["lr"])

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            group.setdefault("pull", 0.0)
            if group["step"] == 1 and not all(parameter.requires_grad for parameter in group["params"][:1]):
                raise RuntimeError("does not require grad")
        return super().step(closure)


def test_where_the_first_step_cannot_be_made_a_tensor_that_holds_without_the_state_alone_is_moved_by_the_state():
    model, optimizer = trained(NeedsMoreInFirstStep)
    freeze(model.leaky, to_zeros=True)
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [LR]) == {"leaky": "optimizer_state"}
    optimizer.param_groups[0]["pull"] = 0.1
    causes, error = try_find_causes(optimizer, {"leaky": model.leaky.weight}, [LR])
    assert causes == {}
    assert error == "NeedsMoreInFirstStep could not be stepped with fresh state (RuntimeError: does not require grad)"


class SkipsAtRandom(CustomOptimizer):
    """Momentum and weight decay; it makes only a third of the moves, chosen at random."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr, weight_decay=0.1)

    def move(self, parameter, group):
        velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter)).mul_(0.9).add_(parameter.grad)
        if torch.rand(()) < 1 / 3:
            parameter.sub_(velocity + group["weight_decay"] * parameter, alpha=group["lr"])


@pytest.mark.parametrize("random_seed", range(12))
def test_every_trial_draws_the_same_random_numbers_as_the_real_step(random_seed):
    model, optimizer = trained(SkipsAtRandom)
    freeze(model.leaky, to_zeros=True)
    torch.default_generator.manual_seed(random_seed)
    before = random_states()
    was = model.leaky.weight.detach().clone()
    found = find_causes(optimizer, {"leaky": model.leaky.weight}, [LR])
    assert equal_values(random_states(), before)
    real_step(model, optimizer)
    moves = not same_bits(was, model.leaky.weight)
    assert found == ({"leaky": "weight_decay|optimizer_state"} if moves else {})


class MovesAfterWarmup(CustomOptimizer):
    """Moves by the number of steps so far, whatever the rate: not at all in its first step."""

    def move(self, parameter, group):
        count = self.state[parameter].get("count", 0)
        self.state[parameter]["count"] = count + 1
        parameter.sub_(parameter.grad, alpha=0.01 * count)


@pytest.mark.parametrize(("declared", "lr"), [(LR, 0.0), (0.0, LR)])
def test_a_first_step_that_moves_nothing_at_any_rate_is_no_sign_of_a_scheduler(declared, lr):
    model, optimizer = trained(MovesAfterWarmup)
    optimizer.param_groups[0]["lr"] = lr
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [declared]) == {"leaky": "optimizer_ignores_lr"}


class AddsDecayToGradient(CustomOptimizer):
    """Adds the weight decay to the gradient in place, and moves only from its second step on."""

    def __init__(self, params, lr=LR):
        super().__init__(params, lr, weight_decay=0.1)

    def move(self, parameter, group):
        parameter.grad.add_(parameter, alpha=group["weight_decay"])
        if self.state[parameter].setdefault("count", 0):
            parameter.sub_(parameter.grad, alpha=group["lr"])
        self.state[parameter]["count"] += 1


def test_a_gradient_that_the_step_itself_has_written_is_not_the_cause():
    model, optimizer = trained(AddsDecayToGradient)
    freeze(model.leaky, to_zeros=True)
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [LR]) == {"leaky": "weight_decay"}
    real_step(model, optimizer)  # now its gradient is the weight decay
    causes, error = try_find_causes(optimizer, {"leaky": model.leaky.weight}, [LR])
    assert causes == {}
    assert error == "the step writes to the gradient, so it is not known what the gradient was before it"


def test_a_gradient_that_the_step_writes_to_is_the_cause_if_the_tensor_needs_it_or_does_not_move_without_it():
    model, optimizer = trained(AddsDecayToGradient)
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [LR]) == {"leaky": "gradient"}
    model.leaky.requires_grad_(False)
    optimizer.param_groups[0]["weight_decay"] = 0.0

    class Doubles(CustomOptimizer):
        def move(self, parameter, group):
            parameter.sub_(parameter.grad.mul_(2), alpha=group["lr"])

    for one in (optimizer, Doubles(model.parameters())):
        assert find_causes(one, {"leaky": model.leaky.weight}, [LR]) == {"leaky": "gradient"}


# Optimizers that move a tensor in their first step only


class AveragesFromZero(CustomOptimizer):
    """Sets the parameter to an average that starts at 0, as if it were its own momentum."""

    def move(self, parameter, group):
        average = self.state[parameter].setdefault("average", torch.zeros_like(parameter)).lerp_(parameter, 0.7)
        parameter.copy_(average.sub_(parameter.grad, alpha=group["lr"]))

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        return super().step(closure)


class AveragesCountingByTensor(AveragesFromZero):
    """The same, but it counts the steps in the state of each parameter, as a tensor."""

    def move(self, parameter, group):
        average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
        first = not self.state[parameter].setdefault("step", torch.zeros(())).add_(1).gt(1)
        parameter.copy_(average.lerp_(parameter, 0.7) if first else parameter - group["lr"] * parameter.grad)


class ForgetsStart(AveragesFromZero):
    """Computes the parameter from the sum of its gradients alone, and divides by the rate: NaN at rate 0, else 0."""

    def move(self, parameter, group):
        total = self.state[parameter].setdefault("total", torch.zeros_like(parameter)).add_(parameter.grad)
        parameter.copy_(-total * group["lr"] / (parameter.grad.abs() * group["lr"] + (group["lr"] > 0)))


FIRST_STEP = pytest.mark.parametrize("make_optimizer", [AveragesFromZero, AveragesCountingByTensor, ForgetsStart])


@FIRST_STEP
@pytest.mark.parametrize("every", [None, 1])
def test_an_optimizer_that_moves_a_tensor_once_at_rate_0_ignores_the_rate(make_optimizer, every):
    model = small_net()
    optimizer = make_optimizer(two_groups(model, 0.0))
    with audit(model, ["leaky"], optimizer, every) as report:
        train(model, optimizer, steps=5)
    assert leak_causes(report) == {"leaky.weight": "optimizer_ignores_lr"}
    assert report.notes == []


@FIRST_STEP
@pytest.mark.parametrize("every", [None, 1])
def test_an_optimizer_that_moves_a_tensor_once_on_a_zero_gradient_does_so_by_its_rule(make_optimizer, every):
    model = small_net()
    optimizer = make_optimizer(two_groups(model, LR))
    freeze(model.leaky, to_zeros=True)
    with audit(model, ["leaky"], optimizer, every) as report:
        train(model, optimizer, steps=5, to_none=False)
    assert leak_causes(report) == {"leaky.weight": "optimizer_rule"}
    assert report.notes == []


def test_the_first_step_is_not_blamed_for_a_later_change():
    model = small_net()
    optimizer = AveragesCountingByTensor(two_groups(model, 0.0))
    train(model, optimizer, steps=3)
    with audit(model, ["leaky"], optimizer) as report:
        train(model, optimizer)
        write(model.leaky.weight)
    assert leak_causes(report) == {"leaky.weight": "outside_write"}
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [0.0, LR]) == {}


@pytest.mark.parametrize("make_optimizer", [SGD, Adam, Velocity])
def test_a_first_step_that_moves_nothing_is_no_cause(make_optimizer):
    model = small_net()
    optimizer = make_optimizer(two_groups(model, 0.0))
    train(model, optimizer, steps=1)
    compute_gradients(model, optimizer)
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [0.0, LR]) == {}


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


HELD_BY_MODULE = {}  # may hold an optimizer


def scaled(value, factor=2.0):
    return math.sqrt(value) / factor


PURE = [
    lambda step: math.pow(step, 0.25),
    lambda step: scaled(float(step), factor=3),
    lambda step: max(torch.sqrt(torch.tensor(float(step))).item(), 1.0),
    lambda step: [each + 1 for each in range(step)][-1],
    (lambda rate: lambda step: step * rate)(0.5),
]


def may_reach(optimizer):
    """Functions that act, or may act, on this optimizer."""
    HELD_BY_MODULE["optimizer"] = optimizer
    parameter = optimizer.param_groups[0]["params"][0]

    def with_attribute(step):
        return with_attribute.optimizer

    with_attribute.optimizer = optimizer
    return {
        "global": lambda step: HELD_BY_MODULE["optimizer"].step(),
        "inner function": lambda step: (lambda: HELD_BY_MODULE)(),
        "through another function": lambda step: calls_global(),
        "closure": lambda step: optimizer.state,
        "default": lambda step, given=optimizer: given,
        "attribute": with_attribute,
        "partial": partial(scaled, factor=parameter),
        "method": optimizer.zero_grad.__func__.__get__(optimizer.param_groups),
        "built-in method": parameter.data.add_,
    }


def calls_global():
    return HELD_BY_MODULE["optimizer"]


@pytest.mark.parametrize("number", range(len(PURE)))
def test_a_function_of_its_arguments_alone_is_copied_and_steps_the_copy_as_the_real_one(number):
    class Schedules(CustomOptimizer):
        def __init__(self, params, lr=LR):
            super().__init__(params, lr)
            self.schedule = PURE[number]

        def move(self, parameter, group):
            parameter.sub_(parameter.grad, alpha=group["lr"] * self.schedule(4))

    model, optimizer = trained(Schedules)
    assert find_causes(optimizer, {"leaky": model.leaky.weight}, [LR]) == {"leaky": "gradient"}
    optimizer_copy, copy_of = copy_optimizer(optimizer)
    step_copy(optimizer_copy)
    real_step(model, optimizer)
    assert all(same_bits(copy_of[id(parameter)], parameter) for parameter in model.parameters())


@pytest.mark.parametrize("way", may_reach(SGD(small_net().parameters())))
def test_a_function_that_may_reach_the_real_optimizer_is_refused(way):
    _, optimizer = trained(Adam)
    optimizer.schedule = may_reach(optimizer)[way]
    with pytest.raises(TypeError, match="its schedule is a function, which would act on the real optimizer"):
        copy_optimizer(optimizer)


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

"""A step of an optimizer, replayed on copies under one change at a time: why would it move this tensor?

Nothing is known of the optimizer but that it has groups, state and gradients, so that it serves those that nobody here
has heard of.
"""

from __future__ import annotations

import copy
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from types import FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from runner.contract import LeakCause
from runner.freezing.groups import rate
from runner.seeding import kept_random_state
from runner.tensors import same_bits, share_memory

Edit = Callable[[Optimizer], None]
# What optimizers call it; the replay shows whether it is to blame.
DECAY = re.compile(r"(^|_)weight_?decay|^(wd|l2|l2_reg|decay)$")


def causes_in_step(
    optimizer: Optimizer, suspects: Mapping[str, Tensor], declared: Sequence[float], with_closure: bool = False
) -> dict[str, LeakCause]:
    """Why a step from the gradients and state that are there now moves each suspect; suspects that do not move are omitted.

    `declared` are the rates that the groups were given, by position; `with_closure`: the step is given one. Nothing real
    is stepped, and no random state is drawn from. Raises whatever the optimizer or its copy raises.
    """
    with kept_random_state():
        moves = partial(moved, optimizer, suspects, with_closure=with_closure)
        moving = moves()
        pulled = {name for name in moving if gradient(suspects[name]) == "present"}
        found = _of_the_pulled(optimizer, {name: suspects[name] for name in pulled}, moves, declared)
        if pushed := moving - pulled:
            found.update(_of_the_pushed(pushed, moves))
    for name, tensor in suspects.items():
        if name not in found and any(p is not tensor and share_memory(p, tensor) for p in _stepped(optimizer)):
            found[name] = "shared_tensor"
    return found


def _of_the_pulled(
    optimizer: Optimizer, pulled: Mapping[str, Tensor], moves: Callable[..., set[str]], declared: Sequence[float]
) -> dict[str, LeakCause]:
    """With a gradient: the scheduler, if the declared rate stops it; a rule that needs no rate; else the gradient itself."""
    rates = [rate(group) for group in optimizer.param_groups]
    known = [*declared, *rates[len(declared) :]]  # groups may have been added since
    left = set(pulled)
    if pulled and known != rates:
        declared_rates = partial(_with_rates, known)
        left = moves(declared_rates)
        left &= moves(declared_rates, _with_fresh_state) if left else left  # some keep a rate in their state (ASGD)
    at_zero = {
        id(parameter)
        for group, lr, was in zip(optimizer.param_groups, rates, known, strict=True)
        for parameter in group["params"]
        if lr == 0 or was == 0
    }
    found: dict[str, LeakCause] = {}
    for name, tensor in pulled.items():
        stepped_anyway: LeakCause = "optimizer_ignores_lr" if id(tensor) in at_zero else "gradient"
        found[name] = stepped_anyway if name in left else "scheduler"
    return found


def _of_the_pushed(pushed: set[str], moves: Callable[..., set[str]]) -> dict[str, LeakCause]:
    """Without a gradient: weight decay, what the state had gathered, both together, or the rule itself."""
    trials: dict[LeakCause, tuple[Edit, ...]] = {
        "weight_decay": (_without_decay,),
        "optimizer_state": (_with_fresh_state,),
        "weight_decay|optimizer_state": (_without_decay, _with_fresh_state),
    }
    found: dict[str, LeakCause] = dict.fromkeys(pushed, "optimizer_rule")
    left = set(pushed)
    for cause, changes in trials.items():
        if left:
            still = moves(*changes)
            found.update(dict.fromkeys(left - still, cause))
            left &= still
    return found


def moved(optimizer: Optimizer, suspects: Mapping[str, Tensor], *changes: Edit, with_closure: bool = False) -> set[str]:
    """Which suspects a step would move by a bit, with these changes made to the copy that is stepped."""
    twin, twin_of = copied(optimizer)
    for change in changes:
        change(twin)
    try:
        step(twin, with_closure)
    except Exception:
        if _with_fresh_state not in changes:
            raise
        twin, twin_of = copied(optimizer)  # it made its state when it was built (Adagrad) and finds none
        for change in (*changes, _with_zeroed_state):
            if change is not _with_fresh_state:
                change(twin)
        step(twin, with_closure)
    return {
        name for name, tensor in suspects.items() if id(tensor) in twin_of and not same_bits(tensor, twin_of[id(tensor)])
    }


def couples_with(optimizer: Optimizer, frozen: Sequence[Tensor]) -> bool:
    """Whether the gradients of what is frozen change what a step makes of the rest."""
    if all(gradient(tensor) != "present" for tensor in frozen):
        return False
    steps = []
    for dropped in ((), frozen):
        with kept_random_state():
            twin, twin_of = copied(optimizer)
            for tensor in dropped:
                if id(tensor) in twin_of:
                    twin_of[id(tensor)].grad = None
            step(twin)
            steps.append(twin_of)
    rest = steps[0].keys() - {id(tensor) for tensor in frozen}
    return any(not same_bits(steps[0][it], steps[1][it]) for it in rest)


def copied(optimizer: Optimizer) -> tuple[Optimizer, dict[int, Tensor]]:
    """A copy with parameters, gradients and state of its own and without hooks, and the copy of each parameter by id.

    `copy.deepcopy` would not do: it loses `.grad`, and what an optimizer holds besides its groups and its state (LBFGS).
    """
    memo: dict[int, Any] = {}
    parameters = _stepped(optimizer)
    for parameter in parameters:
        twin = copy.deepcopy(parameter)
        twin.grad = None if parameter.grad is None else parameter.grad.detach().clone()
        memo[id(parameter)] = twin
    twins = {id(parameter): memo[id(parameter)] for parameter in parameters}
    ones = _with_inner(optimizer)
    memo.update({id(one): object.__new__(type(one)) for one in ones})
    for one in ones:
        _copy_into(memo[id(one)], one, memo)
    return memo[id(optimizer)], twins


def _with_inner(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps."""
    ones = [optimizer]
    for one in ones:  # which grows meanwhile
        inner = [value for kept in vars(one).values() for value in _values(kept) if isinstance(value, Optimizer)]
        ones += [value for value in inner if not any(value is known for known in ones)]
    return ones


def _values(kept: Any) -> Iterable[Any]:
    return kept.values() if isinstance(kept, dict) else kept if isinstance(kept, (list, tuple)) else (kept,)


def _stepped(optimizer: Optimizer) -> list[Tensor]:
    """What an optimizer steps: its groups, and what it lists elsewhere (LBFGS goes on with what its group once held)."""
    lists = []
    for one in _with_inner(optimizer):
        lists += [group["params"] for group in one.param_groups]
        lists += [value for value in vars(one).values() if isinstance(value, list)]
    return list({id(tensor): tensor for found in lists for tensor in found if isinstance(tensor, Tensor)}.values())


def _copy_into(twin: Optimizer, optimizer: Optimizer, memo: dict[int, Any]) -> None:
    # A scheduler leaves on the optimizer a `step` that is bound to the real one.
    kept = {name: value for name, value in vars(optimizer).items() if name != "step" and not name.endswith("_hooks")}
    for name, value in kept.items():
        own = isinstance(value, MethodType) and id(value.__self__) in memo
        if isinstance(value, (FunctionType, MethodType, partial)) and not own:  # a copy shares its closure and globals
            raise TypeError(f"its {name} is a function, which a copy would call on what is real")
    vars(twin).update(copy.deepcopy(kept, memo))
    for value in vars(twin).values():
        if isinstance(value, dict):  # where it keeps what it knows of a tensor by the tensor's id
            for key in [key for key in value if isinstance(key, int) and isinstance(memo.get(key), Tensor)]:
                value[id(memo[key])] = value.pop(key)
    vars(twin).update({name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")})


def step(optimizer: Optimizer, with_closure: bool = False) -> None:
    """One step of a copy by its class's own rule, from the gradients it has.

    A closure, where it is given or needs one, makes these and the loss to first order: a line search has to see it fall.
    """
    rule: Any = type(optimizer).step
    if getattr(rule, "hooked", False):  # torch's wrapper calls the hooks that were registered for all optimizers
        rule = rule.__wrapped__
    argument = signature(rule).parameters.get("closure")
    if argument is not None and (with_closure or argument.default is Parameter.empty):  # LBFGS
        rule(optimizer, closure=_first_order(optimizer))
    else:
        rule(optimizer)


def within_a_step(optimizer: Optimizer) -> bool:
    """Whether the hook that asks was called for a step within a step: an overridden `step` that calls its parent's.

    torch wraps each of the two, and calls the hooks for both.
    """
    wrapper = getattr(type(optimizer).step, "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    count = 0
    while frame is not None:
        count += frame.f_code is wrapper and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count > 1


def _first_order(optimizer: Optimizer) -> Callable[[], Tensor]:
    start = [(one, one.detach().clone(), one.grad.clone()) for one in _stepped(optimizer) if one.grad is not None]

    @torch.no_grad()
    def loss(*given: Any, **options: Any) -> Tensor:
        for parameter, _, slope in start:
            parameter.grad = slope.clone()  # some clear it on the way (SAM)
        terms = [(slope * (parameter - was)).sum() for parameter, was, slope in start]
        return torch.stack([term.float() for term in terms]).sum() if terms else torch.zeros(())

    return loss


def gradient(parameter: Tensor) -> str:
    """What a parameter's gradient is now: `none`, `zero` (it is there, and all of it is 0) or `present`."""
    if parameter.grad is None:
        return "none"
    values = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
    return "present" if bool(values.any()) else "zero"


def _with_rates(rates: list[float], twin: Optimizer) -> None:
    for group, lr in zip(twin.param_groups, rates, strict=True):
        if lr == lr:  # NaN: a group that knows no rate
            group["lr"] = lr


def _without_decay(twin: Optimizer) -> None:
    for one in _with_inner(twin):
        for options in (*one.param_groups, one.defaults, vars(one)):
            for name in options:
                if DECAY.search(name):
                    options[name] = 0.0


def _with_fresh_state(twin: Optimizer) -> None:
    for one in _with_inner(twin):
        one.state.clear()
    _zero_what_is_kept_elsewhere(twin)


def _with_zeroed_state(twin: Optimizer) -> None:
    for one in _with_inner(twin):
        _zeroed(one.state)
    _zero_what_is_kept_elsewhere(twin)


def _zero_what_is_kept_elsewhere(twin: Optimizer) -> None:
    """Zero the tensors in attributes: a velocity, say. One without a dimension is rather a rate or a count."""
    ones = _with_inner(twin)
    stepped = {id(parameter) for one in ones for group in one.param_groups for parameter in group["params"]}
    for kept in (kept for one in ones for kept in vars(one).values()):
        for value in _values(kept):
            if type(value) is Tensor and value.dim() and id(value) not in stepped:
                value.detach().zero_()


def _zeroed(value: Any) -> Any:
    """Tensors and numbers set to 0, however deep."""
    if isinstance(value, Tensor):
        value.detach().zero_()
    elif isinstance(value, dict):
        value.update({key: _zeroed(kept) for key, kept in value.items()})
    elif isinstance(value, list):
        value[:] = map(_zeroed, value)
    return type(value)(0) if isinstance(value, (int, float)) else value

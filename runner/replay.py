"""A step of an optimizer, replayed on copies under one change at a time: why would it move this tensor?

Nothing is known of the optimizer but that it has groups, state and gradients, so that it serves those that nobody here
has heard of.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from runner.groups import placed, rate
from runner.machine import kept_random_state
from runner.tensors import same_bits, share_memory

Change = Callable[[Optimizer], None]
DECAY = re.compile(r"(^|_)(weight_?decay|wd)$")  # what optimizers call it; the replay shows whether it is to blame


def causes_in_step(optimizer: Optimizer, suspects: Mapping[str, Tensor], declared: Sequence[float]) -> dict[str, str]:
    """Why a step, from the gradients and the state that are there now, moves each suspect; what it leaves is left out.

    `declared` are the rates that the groups were given, by position. Nothing real is stepped, and no random state is
    drawn from. Raises whatever the optimizer or its copy raises.
    """
    with kept_random_state():
        moves = partial(moved, optimizer, suspects)
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
) -> dict[str, str]:
    """With a gradient: the scheduler, if the declared rate stops it; a rule that needs no rate; else the gradient itself."""
    rates = [rate(group) for group in optimizer.param_groups]
    raised = bool(pulled) and len(rates) == len(declared) and rates != list(declared)
    left = moves(partial(_with_rates, list(declared))) if raised else set(pulled)
    group_of = placed([optimizer])
    found = {}
    for name, tensor in pulled.items():
        stepped_anyway = "optimizer_ignores_lr" if rate(group_of[id(tensor)][1]) == 0 else "gradient"
        found[name] = stepped_anyway if name in left else "scheduler"
    return found


def _of_the_pushed(pushed: set[str], moves: Callable[..., set[str]]) -> dict[str, str]:
    """Without a gradient: weight decay, what the state had gathered, both together, or the rule itself."""
    trials: dict[str, tuple[Change, ...]] = {
        "weight_decay": (_without_decay,),
        "optimizer_state": (_with_fresh_state,),
        "weight_decay|optimizer_state": (_without_decay, _with_fresh_state),
    }
    found = dict.fromkeys(pushed, "optimizer_rule")
    left = set(pushed)
    for cause, changes in trials.items():
        if left:
            still = moves(*changes)
            found.update(dict.fromkeys(left - still, cause))
            left &= still
    return found


def moved(optimizer: Optimizer, suspects: Mapping[str, Tensor], *changes: Change) -> set[str]:
    """Which suspects a step would move by a bit, with these changes made to the copy that is stepped."""
    twin, twin_of = copied(optimizer)
    for change in changes:
        change(twin)
    try:
        step(twin)
    except Exception:
        if _with_fresh_state not in changes:
            raise
        twin, twin_of = copied(optimizer)  # it made its state when it was built (Adagrad) and finds none
        for change in (*changes, _with_zeroed_state):
            if change is not _with_fresh_state:
                change(twin)
        step(twin)
    return {
        name for name, tensor in suspects.items() if id(tensor) in twin_of and not same_bits(tensor, twin_of[id(tensor)])
    }


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
    return _twin(optimizer, memo), twins


def _stepped(optimizer: Optimizer) -> list[Tensor]:
    """What an optimizer steps: its groups, and what it lists elsewhere (LBFGS goes on with what its group once held)."""
    lists = [group["params"] for group in optimizer.param_groups]
    lists += [value for value in vars(optimizer).values() if isinstance(value, list)]
    return list({id(tensor): tensor for found in lists for tensor in found if isinstance(tensor, Tensor)}.values())


def _twin(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    twin = memo[id(optimizer)] = object.__new__(type(optimizer))
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer) and id(value) not in memo:  # one that wraps another
            _twin(value, memo)
    # A scheduler leaves on the optimizer a `step` that is bound to the real one.
    kept = {name: value for name, value in vars(optimizer).items() if name != "step" and not name.endswith("_hooks")}
    vars(twin).update(copy.deepcopy(kept, memo))
    vars(twin).update({name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")})
    return twin


def step(optimizer: Optimizer) -> None:
    """One step of a copy by its class's own rule, from the gradients it has.

    A closure, where it needs one, gives the loss to first order: a line search has to see it fall.
    """
    rule: Any = type(optimizer).step
    if getattr(rule, "hooked", False):  # torch's wrapper calls the hooks that were registered for all optimizers
        rule = rule.__wrapped__
    argument = signature(rule).parameters.get("closure")
    if argument is not None and argument.default is Parameter.empty:  # LBFGS
        rule(optimizer, _first_order(optimizer))
    else:
        rule(optimizer)


def _first_order(optimizer: Optimizer) -> Callable[[], Tensor]:
    start = [(one, one.detach().clone(), one.grad) for one in _stepped(optimizer) if one.grad is not None]

    @torch.no_grad()
    def loss() -> Tensor:
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
    for options in (*twin.param_groups, twin.defaults, vars(twin)):
        for name in options:
            if DECAY.search(name):
                options[name] = 0.0


def _with_fresh_state(twin: Optimizer) -> None:
    twin.state.clear()


def _with_zeroed_state(twin: Optimizer) -> None:
    for state in twin.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor):
                value.zero_()
            elif isinstance(value, (int, float)):
                state[name] = type(value)(0)

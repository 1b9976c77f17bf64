"""A factor multiplies the scheduled rate in the steps of a phase, and the scheduler never notices."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    MultiplicativeLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from runner.freezing.phases.factors import RateFactors, factor_at
from runner.freezing.phases.phase import Phase
from runner.freezing.selection import Selection

NOTHING = Selection(parameters={})
SCHEDULERS = {
    "step": lambda optimizer: StepLR(optimizer, 2, gamma=0.3),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 7, eta_min=0.01),
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.9),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "one_cycle": lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=12),
    "restarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 3),
    "multiplicative": lambda optimizer: MultiplicativeLR(optimizer, lambda step: 0.8),
    "cyclic": lambda optimizer: CyclicLR(optimizer, 0.01, 0.2, step_size_up=3),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
}


def parts() -> tuple[torch.optim.SGD, dict[int, str]]:
    """Return an optimizer with the groups `a` (in block A), `b` (in B), `c` (in none) and an empty one, and its blocks."""
    tensors = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    groups = [{"params": [each], "name": name} for each, name in zip(tensors, "abc", strict=True)]
    optimizer = torch.optim.SGD([*groups, {"params": [], "name": "empty"}], lr=0.1, momentum=0.9)
    return optimizer, {id(tensors[0]): "A", id(tensors[1]): "B"}


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rates of the groups."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_under_each_scheduler_the_product_is_exact_and_the_scheduled_rate_is_that_without_factors(name):
    (plain, _), (optimizer, block_of) = parts(), parts()
    plain_scheduler, scheduler = SCHEDULERS[name](plain), SCHEDULERS[name](optimizer)
    in_step: list[dict[str, float]] = []
    with ExitStack() as undo:
        factors = RateFactors(optimizer, block_of, undo)
        optimizer.register_step_pre_hook(lambda *_: in_step.append(rates(optimizer)))
        for number in range(1, 13):
            if number in (1, 6):
                given = {"A": 0.3, "B": lambda step: 1 / step} if number == 1 else {"B": 0.0}
                factors.begin(Phase(number, NOTHING, factors=given))
            assert rates(optimizer) == rates(plain)
            scheduled = rates(plain)
            expected = {"A": 0.3, "B": 1 / number} if number < 6 else {"A": 1.0, "B": 0.0}
            plain.step()
            optimizer.step()
            product = {**scheduled, "a": scheduled["a"] * expected["A"], "b": scheduled["b"] * expected["B"]}
            assert in_step[-1] == product
            assert factors.multiplied(scheduled) == product
            assert rates(optimizer) == scheduled
            for each in (plain_scheduler, scheduler):
                each.step(*([1.0] if name == "plateau" else []))


def test_a_rate_that_is_a_tensor_is_multiplied_and_put_back_too():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "name": "a"}], lr=torch.tensor(0.5), foreach=False)
    parameter.grad = torch.ones(1)
    scheduled = optimizer.param_groups[0]["lr"]
    with ExitStack() as undo:
        factors = RateFactors(optimizer, {id(parameter): "A"}, undo)
        factors.begin(Phase(1, NOTHING, factors={"A": 0.5}))
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] is scheduled
    assert (float(scheduled), parameter.item(), factors.last) == (0.5, 0.75, {"a": 0.25})


def test_a_step_that_raises_leaves_no_factor_behind():
    optimizer, block_of = parts()
    with ExitStack() as undo:
        factors = RateFactors(optimizer, block_of, undo)
        factors.begin(Phase(1, NOTHING, factors={"A": 0.5}))

        def fails() -> float:
            raise KeyError("mine")

        with pytest.raises(KeyError):
            optimizer.step(fails)
        optimizer.step()
        assert factors.last == {"a": 0.05}
    assert set(rates(optimizer).values()) == {0.1}


def test_a_rate_that_another_hook_sets_in_the_step_stays():
    optimizer, block_of = parts()
    with ExitStack() as undo:
        factors = RateFactors(optimizer, block_of, undo)
        factors.begin(Phase(1, NOTHING, factors={"A": 0.5, "B": 0.5}))
        optimizer.register_step_pre_hook(lambda *_: optimizer.param_groups[0].update(lr=0.0))
        optimizer.step()
    assert factors.last == {"a": 0.0, "b": 0.05}
    assert rates(optimizer) == {"a": 0.0, "b": 0.1, "c": 0.1, "empty": 0.1}


def test_without_blocks_no_hook_is_registered_and_with_them_they_are_removed():
    optimizer, block_of = parts()
    with ExitStack() as undo:
        RateFactors(optimizer, {}, undo)
        assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (0, 0)
        RateFactors(optimizer, block_of, undo)
        assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (1, 1)
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (0, 0)


def test_a_factor_is_a_number_or_a_function_of_the_step():
    assert (factor_at(0.5, 3), factor_at(lambda step: step / 2, 3)) == (0.5, 1.5)

"""The figures of a run's cost: FLOPs, bytes, and their shares of training everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from runner.contract import COUNTED, Cost
from runner.cost.flops import StepCount
from runner.cost.operators.counter import storages_in
from runner.freezing.selection import Selection
from runner.tensors import tensors_in
from runner.tensors.optimizer_state import needs_closure

Shares = Mapping[str, float]  # {module name: share from 0 to 1}


def bytes_held(parameters: Sequence[Tensor], optimizer: Optimizer, selection: Selection) -> Cost:
    """Return {name of a cost: bytes} for parameters, gradients and optimizer state.

    Names that begin with `frozen_` are for the gradients and optimizer state of frozen parameters only. The value of
    `frozen_optimizer_state_bytes` is None if the optimizer needs a closure (LBFGS).
    """
    frozen_state = [state for key, state in optimizer.state.items() if isinstance(key, Tensor) and key in selection]
    return {
        "gradient_bytes": total_bytes([parameter.grad for parameter in parameters]),
        "optimizer_state_bytes": total_bytes(optimizer.state),
        "parameter_bytes": total_bytes(parameters),
        "frozen_gradient_bytes": total_bytes([parameter.grad for parameter in parameters if parameter in selection]),
        # LBFGS keeps the state of all parameters under one of them.
        "frozen_optimizer_state_bytes": None if needs_closure(optimizer) else total_bytes(frozen_state),
    }


def costs_of_count(counted: StepCount, skipped: Shares) -> Cost:
    """Return {name of a cost: FLOPs or bytes} of a step; None if those of some operators are not known.

    `skipped`: {module name: share from 0 to 1}, the share of the steps in which the module's forward pass was skipped.
    """
    not_computed = sum(share * counted.flops_by_module.get(name, 0) for name, share in skipped.items())
    return {
        "flops_forward": None if counted.unpriced else counted.flops_forward - round(not_computed),
        "flops_backward": None if counted.unpriced else counted.flops_backward,
        "saved_bytes": None if counted.unmeasured else counted.saved_bytes,
        "flops_counted_on": counted.counted_on,
    }


def state_per_byte(optimizer: Optimizer) -> float | None:
    """Return the bytes of optimizer state per byte of a parameter with state.

    Returns None if no parameter has state, or if the optimizer keeps the state of all under one of them (LBFGS).
    """
    with_state = [key for key, state in optimizer.state.items() if isinstance(key, Tensor) and total_bytes(state)]
    if needs_closure(optimizer) or not (size := total_bytes(with_state)):
        return None
    return total_bytes(optimizer.state) / size


def shares_of_unfrozen(cost: Cost, baseline: StepCount, per_byte: float | None) -> Cost:
    """Return {name of a cost + `_share`: this run's cost divided by the same cost of a step with nothing frozen}.

    `cost`: this run's costs. `baseline`: the count of a step with nothing frozen. The baseline contains no optimizer state;
    its size is estimated from that of this run: `per_byte` is what `state_per_byte` returns.
    """
    unfrozen: Cost = {key: getattr(baseline, key, None) for key in COUNTED} | costs_of_count(baseline, {})
    if per_byte is not None:
        unfrozen["optimizer_state_bytes"] = per_byte * baseline.gradient_bytes
    found = {f"{key}_share": cost[key] / unfrozen[key] for key in COUNTED if cost[key] is not None and unfrozen[key]}
    total = baseline.flops_forward + baseline.flops_backward
    if total and not baseline.unpriced and cost["flops_forward"] is not None:
        found["flops_share"] = (cost["flops_forward"] + cost["flops_backward"]) / total
    return found


def total_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested dicts, lists and tuples; memory that several tensors share counts once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages_in(tensors_in(value))}.values())

"""Compare the costs of runs: each cost relative to the run with nothing frozen (`method=none`), and the cheapest methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from runner.contract import COSTS, COSTS_WITH_SHARE, Cost
from runner.runs.read import Run

FLOPS_KEYS, BYTES_KEYS = ("flops_forward", "flops_backward"), ("saved_bytes", "gradient_bytes", "optimizer_state_bytes")
ALWAYS_LISTED = (*COSTS_WITH_SHARE, "parameter_bytes")  # columns that are there even if no run has a value
UNFROZEN_TARGET = "runner.methods.none.NoMethod"


def costs_by_run(runs: Sequence[Run]) -> dict[str, Cost]:
    """Return {run label: {cost name: value}}, with the same cost names for all runs.

    The cost names are those in `contract.COSTS`. Names in ALWAYS_LISTED are always there; the others only if a run has a
    value for them. If no run has any cost, there are no cost names.

    A cost whose name ends in `_share` is a ratio: the cost of this run divided by that of training everything. If the run's
    `run.json` does not have it, as with seconds, it is taken from the run with nothing frozen (`method=none`) and otherwise
    the same config and origin, unless that run did not train everything either.
    """
    unfrozen = {_all_but_method(run): run.record["cost"] for run in runs if _is_unfrozen(run)}
    found: dict[str, Cost] = {}
    for run in runs:
        cost, baseline = run.record["cost"], unfrozen.get(_all_but_method(run), {})
        shares = {
            f"{key}_share": cost[key] / baseline[key]
            for key in COSTS_WITH_SHARE
            if isinstance(cost.get(key), (int, float)) and isinstance(baseline.get(key), (int, float)) and baseline[key]
        }
        known = {key: value for key, value in cost.items() if value is not None}
        found[run.label] = {**cost, **shares, **known}
    if not any(run.record["cost"] for run in runs):
        return {label: {} for label in found}
    keys = [key for key in COSTS if key in ALWAYS_LISTED or any(cost.get(key) not in (None, "") for cost in found.values())]
    return {label: {key: cost.get(key) for key in keys} for label, cost in found.items()}


def total_flops(cost: Mapping[str, Any]) -> float | None:
    """Return the FLOPs of the forward and the backward pass added up, or None if `cost` lacks one of the two numbers."""
    parts = [cost.get(key) for key in FLOPS_KEYS]
    return sum(parts) if all(isinstance(part, (int, float)) for part in parts) else None  # type: ignore[arg-type]


def compare_costs(one: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
    """Return -1 if a step of `one` costs less than one of `other`, 1 if more, 0 if as much, None if that is not known.

    Compared are the FLOPs, then the bytes saved for backward, those of gradients, and those of optimizer state; what is
    known of neither is passed over.
    """
    for own, its in zip(_in_order(one), _in_order(other), strict=True):
        if (own is None) != (its is None):
            return None
        if own is not None and its is not None and own != its:
            return -1 if own < its else 1
    return 0


def cost_rank(cost: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a sort key that puts the cheapest step first, in the order of `compare_costs`; what is not known is last."""
    return tuple(math.inf if value is None else value for value in _in_order(cost))


def _in_order(cost: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Return the costs by which steps are compared, the most important first."""
    return total_flops(cost), *(cost.get(key) for key in BYTES_KEYS)


def trains_everything(run: Run) -> bool:
    """Return whether a run's method is `none`, under which what is declared frozen trains like the rest."""
    return run.record["method"].get("_target_") == UNFROZEN_TARGET


def _all_but_method(run: Run) -> tuple[object, ...]:
    """Return what is equal for runs that differ only in the method: the config, and what they ran on."""
    return run.record["setting"], run.record["buffers"], *sorted(run.origin.items())


def _is_unfrozen(run: Run) -> bool:
    """Return whether a run finished and trained everything: `method=none`, and a model that is built with nothing frozen."""
    return run.finished and trains_everything(run) and run.record["cost"].get("flops_share") in (None, 1)

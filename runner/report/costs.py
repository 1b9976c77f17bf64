"""Compare what runs cost: shares of the unfrozen baseline, and the cheapest methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.contract import COSTS, COSTS_WITH_SHARE, Cost
from runner.report.grouping import overrides_by_key
from runner.runs.read import Run
from runner.runs.text import in_gflop, in_mib

FLOPS_KEYS, BYTES_KEYS = ("flops_forward", "flops_backward"), ("saved_bytes", "gradient_bytes", "optimizer_state_bytes")
ALWAYS_LISTED = (*COSTS_WITH_SHARE, "parameter_bytes")  # columns that are there even if no run has a value
UNFROZEN_TARGET = "runner.methods.none.NoMethod"


def costs_by_run(runs: Sequence[Run]) -> dict[str, Cost]:
    """The cost figures of each run, by label, with the same keys in the same order for all; empty if no run has any.

    A share is computed from the run with an equal config and `method=none`; without such a run it is the run's own
    prediction.
    """
    unfrozen = {(run.record["setting"], run.record["buffers"]): run.record["cost"] for run in runs if _is_unfrozen(run)}
    found: dict[str, Cost] = {}
    for run in runs:
        cost, baseline = run.record["cost"], unfrozen.get((run.record["setting"], run.record["buffers"]), {})
        shares = {
            f"{key}_share": cost[key] / baseline[key]
            for key in COSTS_WITH_SHARE
            if isinstance(cost.get(key), (int, float)) and isinstance(baseline.get(key), (int, float)) and baseline[key]
        }
        baseline_flops, flops = total_flops(baseline), total_flops(cost)
        if baseline_flops and flops is not None:
            shares["flops_share"] = flops / baseline_flops
        found[run.label] = {**cost, **shares}
    if not any(run.record["cost"] for run in runs):
        return {label: {} for label in found}
    keys = [key for key in COSTS if key in ALWAYS_LISTED or any(cost.get(key) not in (None, "") for cost in found.values())]
    return {label: {key: cost.get(key) for key in keys} for label, cost in found.items()}


def total_flops(cost: Mapping[str, Any]) -> float | None:
    """The FLOPs of forward plus backward; None if one of them is missing."""
    parts = [cost.get(key) for key in FLOPS_KEYS]
    return sum(parts) if all(isinstance(part, (int, float)) for part in parts) else None  # type: ignore[arg-type]


def _is_unfrozen(run: Run) -> bool:
    return run.finished and run.record["method"].get("_target_") == UNFROZEN_TARGET


def cheapest_methods(methods: Mapping[str, Sequence[Run]]) -> tuple[list[str], str] | None:
    """The methods with the fewest FLOPs (then saved, gradient and optimizer state bytes), and their cost as a text.

    Compares means over the settings in which every method ran with FLOPs counted; returns None if there is no such setting.
    """
    costs = {method: _costs_by_overrides(runs) for method, runs in methods.items()}
    shared = set.intersection(*(set(by_setting) for by_setting in costs.values())) if costs else set()
    if not shared:
        return None
    means = {
        method: tuple(
            sum(by_setting[setting][part] for setting in shared) / len(shared) for part in range(len(BYTES_KEYS) + 1)
        )
        for method, by_setting in costs.items()
    }
    least = min(means.values())
    cheapest = [method for method in means if means[method] == least]
    return cheapest, f"{in_gflop(least[0])} GFLOP and {in_mib(least[1])} MiB saved for backward a step"


def _costs_by_overrides(runs: Sequence[Run]) -> dict[tuple[str, ...], tuple[float, ...]]:
    """(FLOPs, then the figures of BYTES_KEYS) by the run's overrides without those of the method."""
    found = {}
    for run in runs:
        cost = run.record["cost"]
        flops = total_flops(cost)
        if flops is not None:
            setting = sorted(
                f"{key}={value}" for key, value in overrides_by_key(run).items() if not key.startswith("method")
            )
            found[tuple(setting)] = (flops, *(cost.get(key) or 0.0 for key in BYTES_KEYS))
    return found

"""Compare what runs cost: their shares of the run with nothing frozen (`method=none`), and the cheapest methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.contract import COSTS, COSTS_WITH_SHARE, Cost
from runner.report.grouping import overrides_by_key
from runner.runs.read import Run
from runner.runs.text import in_digits, in_gflop, in_mib, in_percent

FLOPS_KEYS, BYTES_KEYS = ("flops_forward", "flops_backward"), ("saved_bytes", "gradient_bytes", "optimizer_state_bytes")
ALWAYS_LISTED = (*COSTS_WITH_SHARE, "parameter_bytes")  # columns that are there even if no run has a value
UNFROZEN_TARGET = "runner.methods.none.NoMethod"


def costs_by_run(runs: Sequence[Run]) -> dict[str, Cost]:
    """Return {run label: {name in `contract.COSTS`: value}}; all runs have the same names, or none if no run has costs.

    A `_share` is a cost divided by that of the run with nothing frozen (`method=none`) and otherwise the same config.
    Without such a run, it is the share that the run itself recorded.
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
    """Return the FLOPs of forward and backward added up, or None if `cost` lacks one of the two."""
    parts = [cost.get(key) for key in FLOPS_KEYS]
    return sum(parts) if all(isinstance(part, (int, float)) for part in parts) else None  # type: ignore[arg-type]


def _is_unfrozen(run: Run) -> bool:
    """Return whether a run finished and used `method=none`, which freezes nothing."""
    return run.finished and run.record["method"].get("_target_") == UNFROZEN_TARGET


def cheapest_methods(methods: Mapping[str, Sequence[Run]]) -> tuple[list[str], str] | None:
    """Return the names of the cheapest methods (several if equal) and their cost as a text, or None if none can be compared.

    `methods`: {method name: its runs}. Compared are the FLOPs of a step; if these are equal, the bytes saved for backward,
    then the bytes of gradients, then those of optimizer state. Each is a mean over the runs that every method has with the
    same other overrides, and whose FLOPs were counted.
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
    """Return {overrides: costs} for the runs of one method whose FLOPs were counted.

    Overrides are sorted `key=value` texts, without those of the method, so that runs of two methods can be matched.
    Costs are four numbers: FLOPs, then bytes saved for backward, of gradients, of optimizer state (0 if not measured).
    """
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


# {heading of a column: function that writes a figure of one step as text, "" if it is unknown}.
COST_TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "GFLOP": lambda cost: in_gflop(total_flops(cost)),
    "of unfrozen": lambda cost: in_percent(cost.get("flops_share")),
    "saved MiB": lambda cost: in_mib(cost.get("saved_bytes")),
    "gradients MiB": lambda cost: in_mib(cost.get("gradient_bytes")),
    "state MiB": lambda cost: in_mib(cost.get("optimizer_state_bytes")),
    "peak MiB": lambda cost: in_mib(cost.get("peak_memory_bytes")),
    "forward s": lambda cost: in_digits(cost.get("seconds_forward")),
    "backward s": lambda cost: in_digits(cost.get("seconds_backward")),
    "step s": lambda cost: in_digits(cost.get("seconds_step")),
}

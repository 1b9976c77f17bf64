"""What runs cost beside each other: shares of the unfrozen baseline, and the cheapest method where that can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.contract import COMPARED, COSTS, Cost
from runner.report.grouping import given
from runner.runs.read import Run
from runner.runs.text import in_gflop, in_mib

FLOPS, KEPT = ("flops_forward", "flops_backward"), ("saved_bytes", "gradient_bytes", "optimizer_state_bytes")
METERED = (*COMPARED, "parameter_bytes")
UNFROZEN = "runner.methods.none.NoMethod"


def costs(runs: Sequence[Run]) -> dict[str, Cost]:
    """Each run's figures by its label, in one order; shares are measured where the same config was run unfrozen.

    Elsewhere they are as the run predicted them. Empty where no run was metered.
    """
    unfrozen = {(run.record["setting"], run.record["buffers"]): run.record["cost"] for run in runs if _is_unfrozen(run)}
    found: dict[str, Cost] = {}
    for run in runs:
        own, base = run.record["cost"], unfrozen.get((run.record["setting"], run.record["buffers"]), {})
        measured = {
            f"{key}_share": own[key] / base[key]
            for key in COMPARED
            if isinstance(own.get(key), (int, float)) and isinstance(base.get(key), (int, float)) and base[key]
        }
        whole, total = flops(base), flops(own)
        if whole and total is not None:
            measured["flops_share"] = total / whole
        found[run.label] = {**own, **measured}
    if not any(run.record["cost"] for run in runs):
        return {label: {} for label in found}
    known = [key for key in COSTS if key in METERED or any(own.get(key) not in (None, "") for own in found.values())]
    return {label: {key: own.get(key) for key in known} for label, own in found.items()}


def flops(cost: Mapping[str, Any]) -> float | None:
    """Forward and backward together."""
    parts = [cost.get(key) for key in FLOPS]
    return sum(parts) if all(isinstance(part, (int, float)) for part in parts) else None  # type: ignore[arg-type]


def _is_unfrozen(run: Run) -> bool:
    return run.finished and run.record["method"].get("_target_") == UNFROZEN


def cheapest(methods: Mapping[str, Sequence[Run]]) -> tuple[list[str], str] | None:
    """The methods with the fewest FLOPs, of equal ones the fewest bytes saved, of gradients and of state; and that in words.

    Over the settings that all of them ran in with their FLOPs metered; None where there is no such setting.
    """
    metered = {method: _by_setting(runs) for method, runs in methods.items()}
    shared = set.intersection(*(set(own) for own in metered.values())) if metered else set()
    if not shared:
        return None
    means = {
        method: tuple(sum(own[setting][part] for setting in shared) / len(shared) for part in range(len(KEPT) + 1))
        for method, own in metered.items()
    }
    least = min(means.values())
    return [
        method for method in means if means[method] == least
    ], f"{in_gflop(least[0])} GFLOP and {in_mib(least[1])} MiB saved for backward a step"


def _by_setting(runs: Sequence[Run]) -> dict[tuple[str, ...], tuple[float, ...]]:
    found = {}
    for run in runs:
        cost = run.record["cost"]
        total = flops(cost)
        if total is not None:
            setting = sorted(f"{key}={value}" for key, value in given(run).items() if not key.startswith("method"))
            found[tuple(setting)] = (total, *(cost.get(key) or 0.0 for key in KEPT))
    return found

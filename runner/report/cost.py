"""What runs cost beside each other: shares of the unfrozen baseline, and the cheapest method where that can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.report.keys import given
from runner.report.read import Run
from runner.rows import COSTS, MEASURED

FLOPS, SAVED = ("flops_forward", "flops_backward"), "saved_bytes"
METERED = (*MEASURED, "parameter_bytes")
UNFROZEN = "runner.methods.none.NoMethod"


def costs(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Each run's figures by its label, in one order; shares are measured where the same config was run unfrozen.

    Elsewhere they are as the run predicted them. Empty where no run was metered.
    """
    unfrozen = {run.record["setting"]: run.record["cost"] for run in runs if _is_unfrozen(run)}
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        own, base = run.record["cost"], unfrozen.get(run.record["setting"], {})
        measured = {
            f"{key}_share": own[key] / base[key]
            for key in MEASURED
            if isinstance(own.get(key), (int, float)) and isinstance(base.get(key), (int, float)) and base[key]
        }
        found[run.label] = {**own, **measured}
    if not any(run.record["cost"] for run in runs):
        return {label: {} for label in found}
    known = [key for key in COSTS if key in METERED or any(own.get(key) not in (None, "") for own in found.values())]
    return {label: {key: own.get(key) for key in known} for label, own in found.items()}


def flops(cost: Mapping[str, Any], suffix: str = "") -> float | None:
    """Forward and backward together."""
    parts = [cost.get(key + suffix) for key in FLOPS]
    return sum(parts) if all(isinstance(part, (int, float)) for part in parts) else None  # type: ignore[arg-type]


def flops_share(cost: Mapping[str, Any]) -> float | None:
    """The FLOPs of a step as a share of the unfrozen baseline's."""
    whole = [own / share for own, share in ((cost.get(k), cost.get(f"{k}_share")) for k in FLOPS) if own and share]
    total = flops(cost)
    return total / sum(whole) if total is not None and len(whole) == len(FLOPS) else None


def _is_unfrozen(run: Run) -> bool:
    return run.finished and run.record["method"].get("_target_") == UNFROZEN


def cheapest(methods: Mapping[str, Sequence[Run]]) -> tuple[str, str] | None:
    """The method with the fewest FLOPs, of equal ones the fewest bytes saved for backward, and that in words.

    Over the settings that all of them ran in with their FLOPs metered; None where there is no such setting.
    """
    metered = {method: _by_setting(runs) for method, runs in methods.items()}
    shared = set.intersection(*(set(own) for own in metered.values())) if metered else set()
    if not shared:
        return None
    means = {
        method: tuple(sum(own[setting][part] for setting in shared) / len(shared) for part in (0, 1))
        for method, own in metered.items()
    }
    best = min(means, key=lambda method: means[method])
    return best, f"{means[best][0]:.3g} FLOPs and {means[best][1]:.3g} saved bytes a run"


def _by_setting(runs: Sequence[Run]) -> dict[tuple[str, ...], tuple[float, float]]:
    found = {}
    for run in runs:
        cost = run.record["cost"]
        if all(cost.get(key) is not None for key in FLOPS):
            setting = sorted(f"{key}={value}" for key, value in given(run).items() if not key.startswith("method"))
            found[tuple(setting)] = (sum(cost[key] for key in FLOPS), cost.get(SAVED) or 0.0)
    return found

"""What a method cost, once runs have metered it: the cheapest of several, where that can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.report.keys import given
from runner.report.read import Run

FLOPS, SAVED = ("flops_forward", "flops_backward"), "saved_bytes"


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

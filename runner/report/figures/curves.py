"""Runs -> the curves of their losses, those that are equal to the last bit as one."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import listed
from runner.report.grouping import names
from runner.runs.read import Run
from runner.runs.text import counted

MOST_CURVES = 200


def curves(runs: Sequence[Run]) -> tuple[dict[str, list[float]], str]:
    """The losses of the runs, those that are equal to the last bit as one curve, and what a reader should know of them."""
    short = names(runs)
    alike: dict[tuple[float, ...], list[str]] = {}
    for run in runs:
        if run.losses:
            alike.setdefault(tuple(run.losses), []).append(short[run.label])
    picked = list(alike.items())[:MOST_CURVES]
    found = {listed(own, most=2) + (" with the same bits" if len(own) > 1 else ""): list(curve) for curve, own in picked}
    total = sum(map(len, alike.values()))
    said = (
        f"{counted(len(alike), 'curve')} of {counted(total, 'run')}: runs whose losses are equal to the last bit share one."
    )
    return found, said + (f" Shown are the first {len(picked)}." if len(picked) < len(alike) else "")

"""Make the data of the figure of losses; runs whose losses are equal bit by bit share one curve."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import listed
from runner.report.compare.grouping import short_names
from runner.runs.read import Run
from runner.runs.text import counted

MAX_CURVES = 200


def loss_curves(runs: Sequence[Run]) -> tuple[dict[str, list[float]], str]:
    """Return ({curve label: the loss after each step}, caption of the figure), with at most MAX_CURVES curves.

    Runs whose losses are equal bit by bit share a curve. Its label names both runs, or one run and the number of the others.
    """
    names = short_names(runs)
    names_by_losses: dict[tuple[float, ...], list[str]] = {}
    for run in runs:
        if run.losses:
            names_by_losses.setdefault(tuple(run.losses), []).append(names[run.label])
    curves = {}
    for losses, members in list(names_by_losses.items())[:MAX_CURVES]:
        label = listed(members, most=2) + (" with the same bits" if len(members) > 1 else "")
        curves[label] = list(losses)
    number, total = len(names_by_losses), sum(map(len, names_by_losses.values()))
    caption = f"{counted(number, 'curve')} of {counted(total, 'run')}: runs with the same losses, bit by bit, share a curve."
    return curves, caption + (f" Shown are the first {len(curves)}." if len(curves) < number else "")

"""How far tensors moved, of one tensor or of several together, in words; and of which that is not known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from runner.contract import CHANGES, VERDICTS
from runner.display.units import change_text
from runner.errors import listed
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import MAX_CELL, shortened

LIVE = ("drifted", "still")  # the verdicts of buffers that are not frozen, such as the statistics of BatchNorm
SMALLEST = 1e-5  # relative change below which no figure is given


def largest(changes: Iterable[float | None]) -> float | None:
    """Return the largest number; NaN if one is NaN; None if none is known."""
    known = [change for change in changes if change is not None]
    return next((change for change in known if math.isnan(change)), max(known, default=None))


def change_words(rows: Sequence[TensorRow]) -> str:
    """Return the largest relative change of tensors, such as `32.1%`.

    It is `from 0` if they moved from exactly zero, so that there is no percentage, and `?` if it is not recorded.
    """
    change = largest(row.change_rel for row in rows)
    norm = largest(row.change_l2 for row in rows)
    strange = next((value for value in (norm, change) if value is not None and not math.isfinite(value)), None)
    if strange is not None:
        return "NaN" if math.isnan(strange) else "infinite"
    if change is not None and (change > 0 or not any(row.moved for row in rows)):
        return f"<{change_text(SMALLEST)}" if 0 < change < SMALLEST else change_text(change)
    if not any(row.moved for row in rows):
        return "0%"
    return "from 0" if norm is not None else "?"


def not_shown(runs: Sequence[Run], verdicts: Sequence[str] = VERDICTS) -> str:
    """Return a sentence about the tensors whose rows are missing, so that nothing can be shown of them; "" if none is.

    `verdicts`: only tensors with these, as `run.json` counts them.
    """
    missing: Counter[str] = Counter()
    lacking = []
    for run in runs:
        if found := {verdict: number for verdict, number in run.missing.items() if verdict in verdicts}:
            missing.update(found)
            lacking.append(shortened(run.label, MAX_CELL))
    if not missing:
        return ""
    worst_first = sorted(missing.items(), key=lambda item: item[0] != "leaked")
    numbers = ", ".join(f"{number:,} {verdict}" for verdict, number in worst_first)
    return f"Not shown, because their rows are missing in {CHANGES}: tensors of {listed(lacking, most=3)} ({numbers})."

"""How far tensors moved, of one tensor or of several together, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from runner.display.units import change_text
from runner.runs.tables import TensorRow

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

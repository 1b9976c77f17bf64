"""What the runs of a sweep computed once: which used stored outputs of frozen layers, what that saved, and which did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from runner.display.units import flops_text
from runner.errors import listed
from runner.runs.read import Run
from runner.runs.text import MAX_CELL, counted, shortened

MAX_REASONS = 4


def sharing_text(runs: Sequence[Run]) -> str:
    """Return sentences on the stored outputs that the runs used, and why others used none; "" if no run used any.

    The costs of a run are those of its method as if it ran alone; what was saved is said here alone.
    """
    entries = [run.record["shared"] for run in runs if run.record["shared"]]
    readers = [entry for entry in entries if _number(entry.get("batches_read"))]
    if not readers:
        return ""
    read = sum(_number(entry.get("batches_read")) for entry in readers)
    stored = sum(_number(entry.get("batches_stored")) for entry in entries)
    saved = sum(_number(entry.get("flops_not_run")) for entry in readers)
    layers = listed([shortened(name, MAX_CELL) for name in dict.fromkeys(str(entry.get("layer")) for entry in readers)], 3)
    text = (
        f"Outputs of the frozen layers up to {layers} were shared: {len(readers):,} of {counted(len(runs), 'run')} trained "
        f"on stored outputs in {read:,} batches, and those of {stored:,} batches were stored."
    )
    text += f" That saved {flops_text(saved)}, which the costs of the runs do not show." if saved else ""
    reasons = Counter(str(entry.get("reason")) for entry in entries if entry.get("reason"))
    for reason, count in reasons.most_common(MAX_REASONS):
        text += f" Not shared, or not all, in {counted(count, 'run')}: {shortened(reason, MAX_CELL)}."
    return text


def _number(value: object) -> int:
    """Return a whole number of a record; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

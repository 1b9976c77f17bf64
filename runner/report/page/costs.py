"""What a step costs, for each setting, against training everything; and what would save more."""

from __future__ import annotations

from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Section


def costs_section(run_set: RunSet) -> Section | None:
    """Return the section about costs; None if none were measured."""
    return None

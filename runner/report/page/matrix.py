"""A matrix of method x what is frozen: verdict, accuracy or loss, and cost of each setting."""

from __future__ import annotations

from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Section


def matrix_section(run_set: RunSet) -> Section | None:
    """Return the section with the matrix; None for one run."""
    return None

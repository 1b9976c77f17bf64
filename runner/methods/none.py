"""The baseline: no freezing."""

from __future__ import annotations

from runner.methods.base import TRAPS, FreezingMethod


class NoMethod(FreezingMethod):
    """Does nothing: the baseline. Frozen parameters leak at the first step, which shows what trains without freezing."""

    leaks_under = frozenset(TRAPS)

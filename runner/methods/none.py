"""The baseline."""

from __future__ import annotations

from runner.methods.base import TRAPS, FreezingMethod


class NoMethod(FreezingMethod):
    """Does nothing about what is declared frozen: the baseline, which leaks at the first step and says what would move."""

    leaks_under = frozenset(TRAPS)

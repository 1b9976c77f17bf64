"""No freezing, for comparison with the methods that freeze."""

from __future__ import annotations

from runner.methods.base import TRAPS, FreezingMethod


class NoMethod(FreezingMethod):
    """Does nothing, so that all parameters train: the baseline that the freezing methods are compared with.

    Parameters that the config declares frozen train as well, and so show how far they move without freezing.
    """

    leaks_under = frozenset(TRAPS)

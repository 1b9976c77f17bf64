"""No freezing, for comparison with the methods that freeze."""

from __future__ import annotations

from runner.methods.base import TRAPS, FreezingMethod


class NoMethod(FreezingMethod):
    """Does nothing, so that all parameters train: the run that the freezing methods are compared with.

    Parameters that the config declares frozen therefore change, which shows what trains without freezing.
    """

    leaks_under = frozenset(TRAPS)

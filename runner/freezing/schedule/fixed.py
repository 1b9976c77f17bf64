"""The schedules `constant` and `after`: what is frozen stays so to the end, from the first step or from a later one."""

from __future__ import annotations

from runner.errors import ConfigError, is_integer
from runner.freezing.phases.phase import Phase
from runner.freezing.selection import Selection, nothing_of


def constant(selection: Selection) -> list[Phase]:
    """Return a list with one phase (span of steps): the selection is frozen from the first step to the last."""
    return [Phase(1, selection)]


def after(selection: Selection, step: int) -> list[Phase]:
    """Return two phases (spans of steps): nothing is frozen before step number `step`, the selection is frozen from then on.

    With `step` 1 there is only the second phase. Raises ConfigError unless `step` is a whole number of 1 or more.
    """
    if not is_integer(step) or step < 1:
        raise ConfigError(
            f"schedule.step is {step!r}; give the number of the first step at which the layers are frozen, 1 or more"
        )
    return [Phase(1, nothing_of(selection)), Phase(step, selection)] if step > 1 else constant(selection)

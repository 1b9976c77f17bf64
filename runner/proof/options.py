"""The options of an audit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AuditOptions:
    """The options of an audit.

    Attributes:
        every: compare bits after every `every` steps; None for steps 1, 2, 4, 8, ...
        until: the number of the last step that is watched; None for all.
        raise_at_look: raise LeakError at the comparison that finds a frozen tensor changed.
        watch_forward: watch the forward passes from the beginning, as with `every=1`.
    """

    every: int | None = None
    until: int | None = None
    raise_at_look: bool = False
    watch_forward: bool = False

    @property
    def advice(self) -> str:
        """What finds a cause that these options have left unknown."""
        return "use every=1, watch_forward=True" if self.every == 1 else "use every=1"

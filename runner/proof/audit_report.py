"""What an audit found: rows, leaks, and what a cause that is not known would need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.contract import COLUMNS, Row
from runner.errors import listed
from runner.freezing.selection import Selection

if TYPE_CHECKING:
    from pandas import DataFrame

NEED = "it needs one more step that writes it, after the one at which the change was found, or audit(every=1)"


class LeakError(AssertionError):
    """A tensor declared frozen changed."""


@dataclass
class Report:
    """What an audit saw; filled when it ends.

    `looks` are the numbers of the steps after which bits were compared; `notes` say what a cause that is `unknown` would
    need.
    """

    rows: list[Row] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ended: bool = False
    declare: Callable[[Selection | Sequence[str]], None] | None = field(default=None, repr=False)

    def freeze(self, frozen: Selection | Sequence[str]) -> None:
        """From here on, hold what is declared frozen against what it is now: for a loop that freezes in mid-run.

        `frozen`: patterns or a Selection; what was declared before stays declared. Freeze first, a rate of 0
        included, for the rates that the groups have now are those declared. Raises ConfigError for bad
        patterns, and RuntimeError when the audit has ended.
        """
        if self.declare is None:
            raise RuntimeError("the audit has ended: declare what is frozen inside the with block")
        self.declare(frozen)

    @property
    def frame(self) -> DataFrame:
        """The rows as a pandas DataFrame with the columns of `changes.csv`."""
        from pandas import DataFrame

        self._must_have_ended()
        return DataFrame(self.rows, columns=list(COLUMNS))

    @property
    def leaks(self) -> list[str]:
        """The names of what was declared frozen and moved."""
        self._must_have_ended()
        return [row["name"] for row in self.rows if row["verdict"] == "leaked"]

    def raise_if_leaked(self) -> None:
        """Raise LeakError with the names and causes of all leaks, if there are any."""
        self._must_have_ended()
        leaks = [f"{row['name']} ({row['cause']})" for row in self.rows if row["verdict"] == "leaked"]
        if leaks:
            raise LeakError(f"{len(leaks)} frozen tensors changed: {', '.join(leaks)}")

    def _must_have_ended(self) -> None:
        if not self.ended:
            raise RuntimeError("the audit has not ended: read its report after the with block, not in it")


def needs(rows: Sequence[Row], reasons: Mapping[str, str]) -> list[str]:
    """What each cause that no experiment has found would need, names with the same need in one sentence."""
    unknown: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "leaked" and row["cause"] == "unknown":
            need = reasons[row["name"]] or NEED
            unknown.setdefault(need, []).append(row["name"])
    return [f"the cause is unknown for {listed(names, most=2)}: {need}" for need, names in unknown.items()]

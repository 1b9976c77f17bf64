"""The result of an audit: a row for each tensor, which frozen tensors changed, and what a person should read of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from runner.contract import CHANGE_COLUMNS, Row
from runner.errors import listed
from runner.freezing.selection import Selection
from runner.proof.verdict import count_verdicts, problems_of

if TYPE_CHECKING:
    from pandas import DataFrame

Frozen = Selection | Sequence[str]
MAX_LINES = 9  # of `str(report)`


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


class LeakError(AssertionError):
    """Raised if a tensor that was declared frozen has changed."""


class UnsoundError(AssertionError):
    """Raised by `Report.raise_if_unsound` if the training did not do what was declared."""


class Watcher(Protocol):
    """What compares the tensors of a model while an audit runs."""

    def freeze(self, frozen: Frozen) -> None:
        """Declare more tensors frozen from now on."""

    def unfreeze(self, frozen: Frozen) -> None:
        """Declare tensors trainable again."""

    def pause(self) -> AbstractContextManager[None]:
        """Watch neither forward passes nor steps in the block."""

    def finish(self) -> None:
        """Compare tensors for the last time, and fill the rows and notes of the report."""


@dataclass(repr=False)
class Report:
    """The result of `audit`, complete when its `with` block has been left.

    `str(report)` is what a person reads, in less than ten lines.

    Attributes:
        rows: a dict for each parameter and buffer, with the columns of `changes.csv` as keys: how far it moved, and why.
        looks: the numbers of the steps after which all tensors were compared bit by bit with their initial values.
        notes: sentences for the user, such as why the cause of a change is `unknown`.
        why_unknown: {tensor name: why the cause of its change is not known}; empty where it is known.
        ended: whether the `with` block has been left, so that the report is complete.
        is_empty: whether nothing was ever declared frozen, although the flags of the parameters were to say it.
        declarations: the number of calls of `freeze` and `unfreeze`.
        watcher: what compares the tensors while the audit runs; None when it has ended.
    """

    rows: list[Row] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why_unknown: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    is_empty: bool = False
    declarations: int = 0
    watcher: Watcher | None = None

    def freeze(self, frozen: Frozen) -> None:
        """Declare more tensors frozen from now on, for a loop that freezes in the middle of training.

        `frozen`: patterns of names, or what `select` returns. Tensors that were not declared frozen before must keep their
        current values; their norms begin at this call, too. Tensors that were declared frozen before stay so.
        Call this method after you have frozen the tensors. If you freeze by a learning rate of 0, set the rate before the
        call: a change of a learning rate after the call counts as done by a scheduler.
        Raises ConfigError for bad patterns, and RuntimeError if the audit has ended.
        """
        self._require_watcher("freeze").freeze(frozen)
        self.declarations += 1

    def unfreeze(self, frozen: Frozen) -> None:
        """Declare tensors trainable again, for a loop that unfreezes layers in the middle of training.

        `frozen`: patterns of names, or what `select` returns. Call this method before the next step. The verdict of these
        tensors is that of the spans in which they were declared frozen; their norms are those of the whole block.
        Raises ConfigError for bad patterns and if none of the tensors is declared frozen, and RuntimeError if the audit has
        ended.
        """
        self._require_watcher("unfreeze").unfreeze(frozen)
        self.declarations += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not watch the code in this block, such as an evaluation between two steps.

        Its forward passes and optimizer steps are neither watched nor counted, and what it writes to tensors of the model
        and puts back is not noticed. What it does not put back is found at the next comparison of bits.
        Raises RuntimeError if the audit has ended.
        """
        with self._require_watcher("paused").pause():
            yield

    @property
    def frame(self) -> DataFrame:
        """A pandas DataFrame with a row for each parameter and buffer, and the columns of `changes.csv`.

        Raises RuntimeError inside the `with` block of the audit.
        """
        from pandas import DataFrame

        self._require_ended()
        return DataFrame(self.rows, columns=list(CHANGE_COLUMNS))

    @property
    def leaks(self) -> list[str]:
        """The names of the tensors that were declared frozen and differ at the end from their initial values.

        Raises RuntimeError inside the `with` block of the audit.
        """
        self._require_ended()
        return [row["name"] for row in self.rows if row["verdict"] == "leaked"]

    def raise_if_leaked(self) -> None:
        """Raise LeakError, with names and causes, if tensors declared frozen differ at the end from their initial values.

        Raises RuntimeError inside the `with` block of the audit.
        """
        self._require_ended()
        leaks = _names_with_causes(self.rows, "leaked")
        if leaks:
            raise LeakError(f"{len(leaks)} frozen tensors changed: {', '.join(leaks)}")

    def raise_if_unsound(self) -> None:
        """Raise UnsoundError, with names and causes, if the training did not do what was declared.

        That is the case if a frozen tensor leaked, if a trainable parameter stayed idle, if no parameter was trained, or if
        nothing was frozen although the flags of the parameters were to say it. Raises RuntimeError inside the `with` block.
        """
        self._require_ended()
        details = {"leaked": _names_with_causes(self.rows, "leaked"), "idle": _names_with_causes(self.rows, "idle")}
        problems = [
            f"{problem}: {', '.join(details[word])}" if word in details else problem
            for word, problem in problems_of(count_verdicts(self.rows), self.is_empty).items()
        ]
        if problems:
            raise UnsoundError("; ".join(problems))

    def __str__(self) -> str:
        if not self.ended:
            return f"an audit that has not ended; bits were compared after {len(self.looks)} steps"
        count = count_verdicts(self.rows)
        counts = ", ".join(f"{number} {word}" for word, number in count.items() if number)
        headline = "LEAKED" if count["leaked"] else "held" if any(row["frozen"] for row in self.rows) else "nothing frozen"
        lines = [f"{headline}: {counts or 'no tensors'}"]
        for word in ("leaked", "idle"):
            if names := _names_with_causes(self.rows, word):
                lines.append(f"{word}: {listed(names, most=4)}")
        looks = f"after steps {listed(list(map(str, self.looks)), most=12)}" if self.looks else "on leaving only"
        lines.append(f"bits compared {looks}")
        if len(self.notes) > MAX_LINES - len(lines):
            left = MAX_LINES - len(lines) - 1
            return "\n".join([*lines, *self.notes[:left], f"and {len(self.notes) - left} more notes: see report.notes"])
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__

    def _require_watcher(self, method: str) -> Watcher:
        """Return the watcher, or raise RuntimeError if the audit has ended."""
        if self.watcher is None:
            raise RuntimeError(f"the audit has ended; call report.{method}() inside the with block")
        return self.watcher

    def _require_ended(self) -> None:
        """Raise RuntimeError if the `with` block of the audit has not been left, so that the report is not complete."""
        if not self.ended:
            raise RuntimeError("the audit has not ended; read its report after the with block, not in it")


def _names_with_causes(rows: Sequence[Row], verdict: str) -> list[str]:
    """Return `name (cause)` for each row with this verdict."""
    return [f"{row['name']} ({row['cause']})" for row in rows if row["verdict"] == verdict]

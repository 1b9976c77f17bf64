"""The result of an audit: a row for each tensor, which frozen tensors changed, and what to do if a cause is unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.contract import CHANGE_COLUMNS, Cause, Row
from runner.errors import listed
from runner.freezing.selection import Selection
from runner.proof.changes import measure_change
from runner.proof.following import Followed
from runner.proof.verdict import idle_cause, verdict

if TYPE_CHECKING:
    from pandas import DataFrame

HOW_TO_FIND_CAUSE = "use audit(every=1), or train until it changes again after the change was found"


class LeakError(AssertionError):
    """Raised by `Report.raise_if_leaked` if a tensor that was declared frozen has changed."""


@dataclass
class Report:
    """The result of `audit`, complete when its `with` block has been left.

    Attributes:
        rows: a dict for each parameter and buffer, with the columns of `changes.csv` as keys: how far it moved, and why.
        looks: the numbers of the steps after which all tensors were compared bit by bit with their initial values.
        notes: sentences for the user, such as why the cause of a change is `unknown`.
        ended: whether the `with` block has been left, so that the report is complete.
        on_freeze: the function that the method `freeze` calls; None when the audit has ended.
    """

    rows: list[Row] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ended: bool = False
    on_freeze: Callable[[Selection | Sequence[str]], None] | None = field(default=None, repr=False)

    def freeze(self, frozen: Selection | Sequence[str]) -> None:
        """Declare more tensors frozen from now on, for a loop that freezes in the middle of training.

        `frozen`: patterns of names, or what `select` returns. Tensors that were not declared frozen before must keep their
        current values. Tensors that were declared frozen before stay so.
        Call this method after you have frozen the tensors. If you freeze by a learning rate of 0, set the rate before the
        call: a change of a learning rate after the call counts as done by a scheduler.
        Raises ConfigError for bad patterns, and RuntimeError if the audit has ended.
        """
        if self.on_freeze is None:
            raise RuntimeError("the audit has ended; call report.freeze() inside the with block")
        self.on_freeze(frozen)

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
        leaks = [f"{row['name']} ({row['cause']})" for row in self.rows if row["verdict"] == "leaked"]
        if leaks:
            raise LeakError(f"{len(leaks)} frozen tensors changed: {', '.join(leaks)}")

    def _require_ended(self) -> None:
        """Raise RuntimeError if the `with` block of the audit has not been left, so that the report is not complete."""
        if not self.ended:
            raise RuntimeError("the audit has not ended; read its report after the with block, not in it")


def unknown_cause_notes(rows: Sequence[Row], why_unknown: Mapping[str, str]) -> list[str]:
    """Return sentences for the user about the frozen tensors that changed for an unknown cause.

    `rows`: the rows of the report. `why_unknown`: {tensor name: the reason why no cause could be found}. There is one
    sentence for each distinct reason; it names the tensors and the reason. If the reason is empty, the sentence says instead
    how to find the cause.
    """
    names_of: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "leaked" and row["cause"] == "unknown":
            names_of.setdefault(why_unknown[row["name"]] or HOW_TO_FIND_CAUSE, []).append(row["name"])
    return [f"the cause is unknown for {listed(names, most=2)}: {reason}" for reason, names in names_of.items()]


def make_row(row: Followed, *, aliases: Sequence[str], group: str, lr: float | None, steps_seen: bool) -> Row:
    """Return the row of one tensor in the report: a dict with the columns of `changes.csv`.

    `aliases`: the other names that its tensor has at the end. `group`, `lr`: the name and learning rate of its parameter
    group, or "" and None if it is in none. `steps_seen`: whether the audit has seen a step of an optimizer.
    """
    change = measure_change(row.reference, row.tensor)
    evidence, tensor = row.evidence, row.tensor
    word = verdict(row.kind, row.frozen, change.moved, evidence.differed)
    cause: Cause = (evidence.cause or evidence.fallback_cause or "unknown") if word == "leaked" else ""
    if word == "idle":
        cause = idle_cause(evidence, steps_seen, group != "")
    return {
        "name": row.name,
        "aliases": "|".join(aliases),
        "kind": row.kind,
        "module_type": row.entry.module_type,
        "shape": "x".join(map(str, tensor.shape)),
        "numel": tensor.numel(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "frozen": row.frozen,
        "group": group,
        "lr": lr,
        "requires_grad": tensor.requires_grad,
        "initial_l2": change.initial_l2,
        "change_l2": change.change_l2,
        "change_rel": change.change_rel,
        "change_max": change.change_max,
        "moved": change.moved,
        "moved_elements": change.moved_elements,
        "seen_at": evidence.seen_at,
        "verdict": word,
        "cause": cause,
    }

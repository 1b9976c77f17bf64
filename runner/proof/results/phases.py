"""The phases of an audit: spans of steps between two declarations. What each tensor did in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch.optim import Optimizer

from runner.contract import Row
from runner.proof.causes.idle import record_gradients_in
from runner.proof.changes import Change
from runner.proof.following import Followed, Following
from runner.proof.optimizers import KnownOptimizers
from runner.proof.results.phase_copies import PhaseCopies
from runner.proof.results.rows import as_row, cause_of
from runner.proof.verdict import Evidence, verdict


@dataclass(frozen=True)
class PhaseRows:
    """A span of steps in which the same was declared frozen.

    Attributes:
        first_step, last_step: the numbers of its first and its last step.
        rows: a dict for each tensor, as in `Report.rows`, in which all is about these steps alone: `frozen` is what was
            declared in them, norms are those of the change since their beginning.
    """

    first_step: int
    last_step: int
    rows: list[Row]


@dataclass(frozen=True)
class Thawed:
    """The parameters that were frozen in some phases of a run, and not in others.

    Attributes:
        names: those that were thawed: not frozen in a phase after one in which they were, or never frozen.
        trained: those that moved in a phase in which they were not frozen.
        idle: the others, each with the cause in its last such phase: `fc.weight (no_gradient)`.
    """

    names: frozenset[str]
    trained: list[str]
    idle: list[str]


def thawed_parameters(phases: Sequence[PhaseRows]) -> Thawed:
    """Return which parameters were thawed in a run of these phases, and whether they trained then."""
    rows_of: dict[str, list[Row]] = {}
    for phase in phases:
        for row in phase.rows:
            if row["kind"] == "parameter":
                rows_of.setdefault(row["name"], []).append(row)
    names, trained, idle = set[str](), list[str](), list[str]()
    for name, rows in rows_of.items():
        was_frozen = [row["frozen"] for row in rows]
        if not any(was_frozen) or any(before and not after for before, after in pairwise(was_frozen)):
            names.add(name)
        if any(was_frozen) and not all(was_frozen):
            to_train = [row for row in rows if not row["frozen"]]
            if any(row["moved"] for row in to_train):
                trained.append(name)
            else:
                idle.append(f"{name} ({to_train[-1]['cause'] or 'unknown'})")
    return Thawed(frozenset(names), trained, idle)


class PhaseLog:
    """Keeps a copy of all tensors as they were when the present phase began, and makes the rows of a phase that ends.

    Attributes:
        first: the number of the first step of the present phase.
        copies: the tensors as they were when it began.
        recorded: the ids of the optimizers that have made a step in the present phase, after the first phase.
    """

    def __init__(self) -> None:
        self.first = 1
        self.copies = PhaseCopies()
        self.evidence: dict[Followed, Evidence] = {}
        self.recorded: set[int] = set()

    def on_step_end(self, optimizer: Optimizer, rows: Iterable[Followed]) -> None:
        """Record, after an optimizer's first step of a later phase, the gradients of the trainable ones that did not move.

        `rows`: those of the tensors that the optimizer steps.
        """
        if self.first > 1 and id(optimizer) not in self.recorded:
            self.recorded.add(id(optimizer))
            trainable = [row for row in rows if row.kind == "parameter" and not row.frozen]
            idle = [row for row in trainable if not self.copies.differ(row)]
            record_gradients_in(((row, self.evidence.setdefault(row, Evidence())) for row in idle), optimizer)

    def end(self, following: Following, optimizers: KnownOptimizers) -> PhaseRows:
        """Return the rows of the phase that ends with the last step, after which the frozen tensors have been compared."""
        group_of, rows = optimizers.groups(), []
        for row in following.rows:
            name, group = group_of.get(id(row.tensor), ("", None))
            change, differed = self._change(row, optimizers.last_step)
            word = verdict(row.kind, row.frozen, change.moved, differed)
            idle = row.evidence if self.first == 1 else self.evidence.get(row, Evidence())
            found = as_row(
                row,
                change,
                frozen=row.frozen,
                word=word,
                cause=cause_of(word, row.evidence, idle, steps_seen=True, in_optimizer=name != ""),
                seen_at=(row.evidence.seen_at if differed else optimizers.last_step) if change.moved or differed else None,
                aliases=following.aliases(row),
                group=name,
                lr=optimizers.lr_of(group),
            )
            rows.append(found)
        return PhaseRows(self.first, optimizers.last_step, rows)

    def _change(self, row: Followed, last: int) -> tuple[Change, bool]:
        """Return (how far a tensor moved in this phase, whether other bits were first seen in it); `last`: its last step."""
        seen_at = row.evidence.seen_at
        return self.copies.change(row), self.first <= (seen_at or 0) <= last

    def begin(self, following: Following, step: int) -> None:
        """Begin a phase whose first step is `step`."""
        self.first = step
        self.copies.renew(following.rows)
        self.evidence.clear()
        self.recorded.clear()

"""The phases of an audit: spans of steps between two declarations. What each tensor did in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor
from torch.optim import Optimizer

from runner.contract import Row
from runner.proof.causes.idle import record_gradients_in
from runner.proof.changes import Change, measure_change
from runner.proof.following import Followed, Following
from runner.proof.optimizers import KnownOptimizers
from runner.proof.results.rows import as_row, cause_of
from runner.proof.verdict import Evidence, verdict
from runner.tensors import copy_of, same_bits


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

    A tensor that kept its bits in a phase keeps its copy, too, at first the one that the audit has anyway. So no copy is ever
    written to.

    Attributes:
        first: the number of the first step of the present phase.
        values: the copies; without those of the first phase, which are the references of the rows.
        unmoved: the changes of the tensors that kept their bits in the last phase.
        recorded: the ids of the optimizers that have made a step in the present phase, after the first phase.
    """

    def __init__(self) -> None:
        self.first = 1
        self.values: dict[Followed, Tensor] = {}
        self.unmoved: dict[Followed, Change] = {}
        self.evidence: dict[Followed, Evidence] = {}
        self.recorded: set[int] = set()

    def on_step_end(self, optimizer: Optimizer, rows: Iterable[Followed]) -> None:
        """Record, after an optimizer's first step of a later phase, the gradients of the parameters that it did not move.

        `rows`: those of the tensors that the optimizer steps. Of parameters that are frozen, nothing is recorded.
        """
        if self.first > 1 and id(optimizer) not in self.recorded:
            self.recorded.add(id(optimizer))
            trainable = [row for row in rows if row.kind == "parameter" and not row.frozen]
            idle = [row for row in trainable if same_bits(self._copy_for(row), row.tensor)]
            record_gradients_in(((row, self.evidence.setdefault(row, Evidence())) for row in idle), optimizer)

    def end(self, following: Following, optimizers: KnownOptimizers) -> PhaseRows:
        """Return the rows of the phase that ends with the last step. Bits of frozen tensors have been compared after it."""
        group_of, rows = optimizers.groups(), []
        for row in following.rows:
            name, group = group_of.get(id(row.tensor), ("", None))
            change = self._change(row)
            differed = self.first <= (row.evidence.seen_at or 0) <= optimizers.last_step  # at a comparison in this phase
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

    def begin(self, following: Following, step: int) -> None:
        """Begin a phase whose first step is `step`: copy the tensors that have moved in the one that has ended."""
        self.first = step
        for row in following.rows:
            copied = self._copy_for(row) if row in self.unmoved else None
            self.values.pop(row, None)  # before another copy is made
            self.values[row] = copy_of(row.tensor) if copied is None else copied
        self.evidence.clear()
        self.recorded.clear()

    def _copy_for(self, row: Followed) -> Tensor:
        """Return the copy of a tensor as it was when the present phase began; of one that appeared in it, the reference."""
        return self.values.get(row, row.reference)

    def _change(self, row: Followed) -> Change:
        """Return how far a tensor moved in this phase, and keep it if it did not: then the next phase begins with the same."""
        before, known = self._copy_for(row), self.unmoved.pop(row, None)
        has_held = row.frozen and not row.evidence.differed and before is row.reference  # its bits have just been compared
        if known is not None and (has_held or same_bits(before, row.tensor)):
            change = known
        else:
            change = measure_change(before, before if has_held else row.tensor)
        if not change.moved:
            self.unmoved[row] = change
        return change

"""The phases of an audit: spans of steps between two declarations. What each tensor did in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from runner.contract import Row
from runner.errors import listed
from runner.freezing.groups import Group
from runner.proof.causes.idle import record_gradients_in
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


def idle_phase_notes(phases: Sequence[PhaseRows]) -> list[str]:
    """Return a sentence about parameters that were frozen in some phases, and did not move in those that train them."""
    idle = thawed_parameters(phases).idle
    return [f"did not move in the phases that train them: {listed(idle, most=4)}"] if idle else []


class Membership(NamedTuple):
    """In which parameter group the tensor of a row is, and with which flag."""

    tensor: ref[Tensor]
    group: str
    group_id: int | None
    requires_grad: bool


def membership(tensor: Tensor, group_of: Mapping[int, tuple[str, Group]]) -> Membership:
    """Return the present membership of a tensor; `group_of`: {id of a tensor: (name of its group, the group)}."""
    name, group = group_of.get(id(tensor), ("", None))
    return Membership(ref(tensor), name, None if group is None else id(group), tensor.requires_grad)


class PhaseLog:
    """Knows what all tensors were when the present phase began, and makes the rows of a phase that ends.

    Attributes:
        first: the number of the first step of the present phase.
        copies: the tensors as they were when it began.
        recorded: the ids of the optimizers that have made a step in the present phase.
        memberships: those of the tensors after these steps; when the phase ends, the next one may have been prepared.
        seen_at: in a phase after the first, {row: the number of the step after which other bits were first seen}, for
            tensors that differed in an earlier phase too.
    """

    def __init__(self) -> None:
        self.first = 1
        self.copies = PhaseCopies()
        self.evidence: dict[Followed, Evidence] = {}
        self.recorded: set[int] = set()
        self.memberships: dict[Followed, Membership] = {}
        self.seen_at: dict[Followed, int] = {}

    def on_step_end(self, optimizer: Optimizer, optimizers: KnownOptimizers, compares: bool) -> None:
        """Record the groups, flags and gradients after an optimizer's first step of a phase.

        `compares`: whether all bits are compared after this step; then those that differed in an earlier phase are, too.
        """
        if id(optimizer) not in self.recorded:
            self.recorded.add(id(optimizer))
            self._record(optimizer, optimizers)
        for row in optimizers.rows(optimizer) if compares and self.first > 1 else ():
            is_new = row.evidence.differed and row not in self.seen_at and (row.evidence.seen_at or 0) < self.first
            if is_new and self.copies.differ(row):
                self.seen_at[row] = optimizers.last_step

    def _record(self, optimizer: Optimizer, optimizers: KnownOptimizers) -> None:
        """Record groups and flags of the rows of an optimizer, and the gradients of what is to train and did not move."""
        group_of = optimizers.groups()
        self.memberships.update((row, membership(row.tensor, group_of)) for row in optimizers.rows(optimizer))
        if self.first > 1:
            own = [row for row in optimizers.own_rows(optimizer) if row.kind == "parameter" and not row.frozen]
            idle = [row for row in own if not self.copies.differ(row)]
            record_gradients_in(((row, self.evidence.setdefault(row, Evidence())) for row in idle), optimizer)

    def end(self, following: Following, optimizers: KnownOptimizers) -> PhaseRows:
        """Return the rows of the phase that ends with the last step, after which the frozen tensors have been compared."""
        group_of, rows = optimizers.groups(), []
        for row in following.rows:
            then = self.memberships.get(row)
            is_known = then is not None and then.tensor() is row.tensor
            member = then if then and is_known else membership(row.tensor, group_of)
            rows.append(self._row(row, member, following, optimizers))
        return PhaseRows(self.first, optimizers.last_step, rows)

    def _row(self, row: Followed, member: Membership, following: Following, optimizers: KnownOptimizers) -> Row:
        """Return the row of a tensor in the phase that ends."""
        change = self.copies.change(row)
        seen_at = self._seen_at(row, last := optimizers.last_step)
        word = verdict(row.kind, row.frozen, change.moved, seen_at is not None)
        idle = row.evidence if self.first == 1 else self.evidence.get(row, Evidence())
        found = as_row(
            row,
            change,
            frozen=row.frozen,
            word=word,
            cause=cause_of(word, row.evidence, idle, steps_seen=True, in_optimizer=member.group != ""),
            seen_at=last if seen_at is None and change.moved else seen_at,
            aliases=following.aliases(row),
            group=member.group,
            lr=None if member.group_id is None else optimizers.last_lrs.get(member.group_id),
        )
        return {**found, "requires_grad": member.requires_grad}

    def _seen_at(self, row: Followed, last: int) -> int | None:
        """Return after which step of this phase other bits were first seen, or None; `last`: its last step."""
        step = self.seen_at.get(row) or row.evidence.seen_at or 0
        return step if self.first <= step <= last else None

    def begin(self, following: Following, step: int) -> None:
        """Begin a phase whose first step is `step`."""
        self.first = step
        self.copies.renew(following.rows)
        for recorded in (self.evidence, self.recorded, self.memberships, self.seen_at):
            recorded.clear()

    def begin_span(self, row: Followed, following: Following, optimizers: KnownOptimizers) -> None:
        """Begin a span in which a tensor is declared frozen; forget what it did in this phase before.

        If it still has the bits that it had when the phase began, its reference is the copy from then.
        """
        following.begin_span(row, optimizers.last_step, optimizers.made, copied=self.copies.of(row))
        self.copies.begin_span(row)
        self.seen_at.pop(row, None)

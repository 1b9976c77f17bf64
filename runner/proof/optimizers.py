"""The optimizers that train a model under audit: those that were given, and those that are found to step its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import is_
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from runner.freezing.groups import Group, group_lr, groups_by_tensor
from runner.proof.causes.gradients import has_finite_gradient
from runner.proof.causes.optimizer_copy import stepped_tensors, with_inner_optimizers
from runner.proof.following import Followed, Following


class KnownOptimizers:
    """The optimizers of one audit, how many steps each has made, and which rows of the report each one answers for.

    Args:
        given: the optimizers that were given to the audit.
        following: the rows of the audit.
    """

    def __init__(self, given: Sequence[Optimizer], following: Following) -> None:
        self.given, self.following = list(given), following
        self.known: list[Optimizer] = list(given)
        self._known_ids = {id(each) for each in self.known}
        self.first: Optimizer | None = None  # the one that made the first step of the current round
        self.round: set[int] = set()  # the ids of the optimizers that have made a step in this round
        self.begun: set[int] = set()  # the ids of the optimizers whose last step has begun and not ended
        self.has_raised = False  # whether the step before, of the optimizer that steps now, has raised
        self.last_step = 0  # the number of rounds; with one optimizer, of steps
        self.made = 0  # the number of steps of all optimizers together
        self.steps: Counter[int] = Counter()  # by id of an optimizer
        self.unrelated: Counter[str] = Counter()  # {class name: steps} of optimizers without a tensor of the model
        self.last_lrs: dict[int, float] = {}  # by id of a parameter group: its learning rate at its last step
        self.declared_lrs: dict[int, list[float]] = {}  # by id of an optimizer: see `store_lrs`
        self.orphans: dict[int, list[ref[Tensor]]] = {}  # by id of an optimizer: its tensors that are not in the model
        self.parameters: dict[int, list[Tensor]] = {}  # by id of a known optimizer: those in its groups at its last step
        self.assignment = 0  # how often the rows were assigned anew to the optimizers
        self._own_rows: dict[int, list[Followed]] = {}  # by id of an optimizer: the rows of the tensors that it steps
        self._other_rows: list[Followed] | None = None  # those of tensors that no optimizer steps
        self.store_lrs()

    def store_lrs(self) -> None:
        """Store the learning rates that all groups have now, to tell later whether a scheduler has changed them."""
        self.declared_lrs = {id(each): [group_lr(group) for group in each.param_groups] for each in self.known}

    def on_step_begin(self, optimizer: Optimizer) -> bool:
        """Take note of an optimizer that begins a step; return whether it was given or steps a tensor of the model."""
        parameters = _parameters_of(optimizer)
        before = self.parameters.get(id(optimizer), [])
        are_known = len(before) == len(parameters) and all(map(is_, before, parameters)) and self.knows(optimizer)
        if not are_known and not self._read_parameters(optimizer, parameters):
            return False
        self._begin_round(optimizer)
        self.has_raised = id(optimizer) in self.begun
        self.begun.add(id(optimizer))
        return True

    def _read_parameters(self, optimizer: Optimizer, parameters: list[Tensor]) -> bool:
        """Take note of an optimizer that is new or has other parameters than at its last step; return as `on_step_begin`."""
        ids = set(map(id, parameters))
        stepped_before = any(
            id(each) in self.round and not ids.isdisjoint(map(id, _parameters_of(each))) for each in self.known
        )
        unknown = ids - self.following.ids
        if unknown and not unknown <= self._orphan_ids(optimizer):
            self.update()  # before the first step of a tensor that is new
            # Not kept alive: a loop may make a model and an optimizer for each task.
            self.orphans[id(optimizer)] = [ref(each) for each in parameters if id(each) not in self.following.ids]
        if not self.knows(optimizer):
            if ids.isdisjoint(self.following.ids):
                self.unrelated[type(optimizer).__name__] += 1
                return False
            self._drop_superseded(optimizer, ids)
            self.known.append(optimizer)
            self._known_ids.add(id(optimizer))
            self.declared_lrs[id(optimizer)] = [group_lr(group) for group in optimizer.param_groups]
            if stepped_before:
                self.round.add(id(optimizer))  # it replaces one that has stepped in this round, so a new round begins
        self.forget_rows()
        self.parameters[id(optimizer)] = parameters
        return True

    def _drop_superseded(self, optimizer: Optimizer, ids: set[int]) -> None:
        """Forget each optimizer that was not given and all of whose tensors a new one has: its state must not be kept alive.

        `ids`: the ids of the tensors of the new optimizer. If the other one steps again, it is found again.
        """
        for old in self.known[len(self.given) :]:
            if ids.issuperset(map(id, _parameters_of(old))):
                self.known.remove(old)
                self._known_ids.discard(id(old))
                self.first = optimizer if self.first is old else self.first
                for by_id in (self.steps, self.parameters, self.declared_lrs, self.orphans, self._own_rows):
                    by_id.pop(id(old), None)  # type: ignore[attr-defined]
                for of_ids in (self.begun, self.round):
                    of_ids.discard(id(old))

    def _begin_round(self, optimizer: Optimizer) -> None:
        """If an optimizer steps again, a new round of steps begins, and the optimizer is the first one of it."""
        if id(optimizer) in self.round or self.first is None:
            self.round.clear()
            if self.first is not optimizer:  # the first one so far has been replaced
                self.first = optimizer
                self.assignment += 1

    def knows(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer was given, or was found to step a tensor of the model."""
        return id(optimizer) in self._known_ids

    @property
    def step(self) -> int:
        """The number of the step that runs now; the steps of several optimizers in one round have the same number."""
        return self.last_step + (not self.round)

    def step_is_complete(self, number: int) -> bool:
        """Return whether step `number` was made by all optimizers that have made a step before."""
        return self.last_step >= number and all(id(each) in self.round for each in self.known if self.steps[id(each)])

    def on_step_end(self, optimizer: Optimizer) -> int:
        """Count a step of the optimizer, and return how many it has made."""
        self.last_step = self.step
        self.made += 1
        self.begun.discard(id(optimizer))
        self.round.add(id(optimizer))
        self.steps[id(optimizer)] += 1
        self.last_lrs.update((id(group), group_lr(group)) for group in optimizer.param_groups)
        return self.steps[id(optimizer)]

    def own_rows(self, optimizer: Optimizer) -> list[Followed]:
        """Return the rows of the tensors that an optimizer steps."""
        if id(optimizer) not in self._own_rows:
            ids = {id(tensor) for tensor in stepped_tensors(optimizer)}
            self._own_rows[id(optimizer)] = [row for row in self.following.rows if id(row.tensor) in ids]
        return self._own_rows[id(optimizer)]

    def other_rows(self, optimizer: Optimizer) -> list[Followed]:
        """Return the rows of the tensors that no optimizer steps, if `optimizer` began the round; otherwise none.

        Thus each row is looked at once a round, however many optimizers there are.
        """
        if optimizer is not self.first:
            return []
        if self._other_rows is None:
            held = {row for each in self.known for row in self.own_rows(each)}
            self._other_rows = [row for row in self.following.rows if row not in held]
        return self._other_rows

    def rows(self, optimizer: Optimizer) -> list[Followed]:
        """Return the rows that an optimizer answers for: its own, and, if it began the round, those of no optimizer."""
        own, other = self.own_rows(optimizer), self.other_rows(optimizer)
        return [*own, *other] if other else own

    def update(self) -> None:
        """Look at the model again: which tensors stand at the names of the rows now."""
        if self.following.update():
            self.parameters.clear()
            self.forget_rows()

    def forget(self) -> None:
        """Drop all optimizers and tensors."""
        self.given, self.known, self.first = [], [], None
        self.parameters.clear()
        self.orphans.clear()
        self.forget_rows()

    def forget_rows(self) -> None:
        """Find the rows of each optimizer anew, because the tensors of the model have changed."""
        self._own_rows.clear()
        self._other_rows = None
        self.assignment += 1

    def holding(self, rows: Iterable[Followed]) -> dict[int, tuple[Optimizer, list[Followed]]]:
        """Return {id(optimizer): (optimizer, those of the rows whose tensors it steps)} for optimizers that have stepped."""
        wanted = set(rows)
        pairs = [(each, [row for row in self.own_rows(each) if row in wanted]) for each in self.known]
        return {id(each): (each, own) for each, own in pairs if self.steps[id(each)]}

    def groups(self) -> dict[int, tuple[str, Group]]:
        """Return {id(tensor): (name of its parameter group, the group)}; the optimizers that were given count first."""
        given_ids = {id(tensor) for each in self.given for tensor in stepped_tensors(each)}
        found = [each for each in self.known[len(self.given) :] if self._adds_to(each, given_ids)]
        return groups_by_tensor([*self.given, *found])

    def lr_of(self, group: Group | None) -> float | None:
        """Return the learning rate of a parameter group at its last step, or now if it made none; None without a group."""
        return None if group is None else self.last_lrs.get(id(group), group_lr(group))

    def notes(self, until: int | None = None) -> list[str]:
        """Return sentences for the user about optimizers: without a step, not given, or with tensors that are elsewhere.

        `until`: the number of the last step that is watched; None for all.
        """
        step = "step" if until is None else f"step that was watched, up to step {until}"
        notes = []
        stepped = {id(each) for each in self.known if self.steps[id(each)]}
        for each in self.given:
            if not hasattr(each, "_optimizer_step_post_hooks"):
                notes.append(
                    f"the steps of {type(each).__name__} are not seen: it has not called torch's Optimizer.__init__"
                )
            elif not any(id(inner) in stepped for inner in with_inner_optimizers(each)):
                is_finite = all(map(has_finite_gradient, stepped_tensors(each)))
                why = (
                    "" if is_finite else ": gradients are infinite or NaN, so that a GradScaler may have skipped every step"
                )
                notes.append(f"{type(each).__name__}, which was given, made no {step}{why}")
        inner_ids = {id(inner) for each in self.given for inner in with_inner_optimizers(each)}
        for each in self.known[len(self.given) :] if self.given else []:
            if id(each) not in inner_ids:
                notes.append(f"{type(each).__name__}, which was not given, made steps too, with tensors of the model")
        for each in self.known:
            if orphans := self.orphans.get(id(each)):
                notes.append(
                    f"{type(each).__name__} steps {len(orphans)} tensor{'s' * (len(orphans) > 1)} the model does not have"
                )
        if not stepped and self.unrelated:
            name, count = self.unrelated.most_common(1)[0]
            notes.append(f"{name} made {count} step{'s' * (count > 1)}, but has no tensor of the model")
        return notes

    def orphan_tensors(self) -> list[Tensor]:
        """Return the tensors that are not in the model and that an optimizer steps, as far as they still exist."""
        return [tensor for orphans in self.orphans.values() for orphan in orphans if (tensor := orphan()) is not None]

    def _orphan_ids(self, optimizer: Optimizer) -> set[int]:
        """Return the ids of the tensors that an optimizer steps and the model does not have."""
        return {id(tensor) for orphan in self.orphans.get(id(optimizer), ()) if (tensor := orphan()) is not None}

    def _adds_to(self, optimizer: Optimizer, ids: set[int]) -> bool:
        """Return whether an optimizer steps a tensor other than those with these ids."""
        return any(id(tensor) not in ids for tensor in stepped_tensors(optimizer))


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the tensors in the parameter groups of an optimizer."""
    return list(chain.from_iterable(group["params"] for group in optimizer.param_groups))

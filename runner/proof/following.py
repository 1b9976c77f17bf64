"""Follow the tensors of a model by identity and by name, while layers are replaced, tied, wrapped and added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import is_

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from runner.contract import TensorKind
from runner.errors import ConfigError
from runner.freezing.selection import Selection
from runner.proof.changes import Snapshot
from runner.proof.marks import Window
from runner.proof.verdict import Evidence, FrozenSpan
from runner.shards import fsdp_modules, is_dtensor, is_gathered, put_shards_back
from runner.tensors import TensorEntry, copy_of, has_arithmetic, has_values, names_and_tensors, same_bits, tensor_entries


@dataclass(eq=False)
class Followed:
    """What one row of the report is about: one or several names of the model, and the tensor that stands at them.

    Attributes:
        entry: the entry of that tensor in the model.
        names: the names that the row is about; the first one is the row's name.
        kind: what stood at the names first: `parameter` or `buffer`.
        tensor: the tensor at these names, or, if the model no longer has any of them, the tensor that stood there last.
        reference: a copy of the values to compare with: those that the tensor had when it was first seen, or, if it was
            declared frozen later, when it was declared.
        frozen: whether one of the names is declared frozen now.
        appeared: whether none of the names was in the model on entry.
        is_gone: whether neither the tensor nor any of the names is in the model now.
        split_from: the row that had these names before another tensor was put there.
        frozen_since: how many steps all optimizers together had made when it was declared frozen; 0 if it was on entry.
        ended_spans: the spans in which it was declared frozen before it was declared trainable again.
        evidence: what the audit has observed of the tensor; of a tensor that was declared trainable again, since then.
        window: what happened to it since the last comparison that found its bits unchanged.
    """

    entry: TensorEntry
    names: list[str]
    kind: TensorKind
    tensor: Tensor
    reference: Tensor
    frozen: bool = False
    appeared: bool = False
    is_gone: bool = False
    split_from: Followed | None = None
    frozen_since: int = 0
    ended_spans: list[FrozenSpan] = field(default_factory=list)
    evidence: Evidence = field(default_factory=Evidence)
    window: Window = field(default_factory=Window)

    @property
    def name(self) -> str:
        """The name of the row."""
        return self.names[0]

    @property
    def was_frozen(self) -> bool:
        """Whether it was declared frozen at any time."""
        return self.frozen or bool(self.ended_spans)

    @property
    def may_be_stepped(self) -> bool:
        """Whether an optimizer step may have changed its bits since they were last found unchanged."""
        return self.window.reached and not self.evidence.replaced


def new_row(entry: TensorEntry, names: list[str], reference: Tensor) -> Followed:
    """Return a row about the tensor of an entry, under some of its names; `reference` is a copy of its values."""
    return Followed(entry=entry, names=names, kind=entry.kind, tensor=entry.tensor, reference=reference)


class Following:
    """The rows of an audit, and which tensor of the model each one is about now.

    A frozen row keeps its reference, whatever tensor is put at its names. Any other row is compared with what the tensor at
    its names was when it was first seen.

    Args:
        model: the model that is trained.
        before: copies of its tensors, the references.
    """

    def __init__(self, model: nn.Module, before: Snapshot) -> None:
        self.model = model
        self.may_be_gathered = bool(fsdp_modules(model))  # whether FSDP may have gathered a parameter at its name
        self.is_sharded = any(is_dtensor(entry.tensor) for entry in before.entries.values())
        self.declared: set[str] = set()  # the names that are declared frozen now
        self.rows: list[Followed] = []
        self.row_of: dict[str, Followed] = {}  # by name
        self.entries: dict[str, TensorEntry] = {}  # of the model at the last update
        self.entry_of: dict[int, TensorEntry] = {}  # the same, by id of the tensor
        self.ids: set[int] = set()  # of the tensors in the model at the last update
        self.names: list[str] = []  # all names in the model at the last update
        self.tensors: list[Tensor] = []  # the tensors at these names
        self.first_values: dict[int, tuple[Tensor, Tensor]] = {}  # by id: (tensor, copy of it when it was first seen)
        for name, entry in before.entries.items():
            self.first_values[id(entry.tensor)] = entry.tensor, before.values[name]
            self._add(new_row(entry, list(entry.names), before.values[name]))

    def update(self) -> bool:
        """Look at the model again: find the tensors that stand at the names of the rows now, and add rows for new ones.

        Returns whether a name is new or gone, or has another tensor than at the last update; False while FSDP has gathered
        parameters. Raises ConfigError if a tensor was sharded since the audit began.
        """
        names, tensors = names_and_tensors(self.model)
        if names == self.names and all(map(is_, tensors, self.tensors)):
            return False
        if self.may_be_gathered and any(map(is_gathered, tensors, map(self._tensor_before, names))):
            return False
        for name, tensor in zip(names, tensors, strict=True):
            was_sharded = is_dtensor(self._tensor_before(name)) if name in self.row_of else self.is_sharded
            if is_dtensor(tensor) and not was_sharded:
                raise ConfigError(f"model: {name} was sharded after audit() began; enter audit() after fully_shard")
        self.names, self.tensors = names, tensors
        self.entries = {name: entry for name, entry in tensor_entries(self.model).items() if not is_lazy(entry.tensor)}
        self.entry_of = {id(entry.tensor): entry for entry in self.entries.values()}
        self.ids = set(self.entry_of)
        at_name = {name: entry for entry in self.entries.values() for name in entry.names}
        for row in list(self.rows):
            self._follow(row, at_name)
        followed = {id(row.tensor) for row in self.rows}
        for entry in self.entries.values():
            new_names = [name for name in entry.names if name not in self.row_of]
            if new_names and id(entry.tensor) not in followed:
                self._add(replace(new_row(entry, new_names, self._first_value(entry.tensor)), appeared=True))
        for row in self.rows:
            row.is_gone = id(row.tensor) not in self.ids
        used = self.ids | {id(row.tensor) for row in self.rows}
        self.first_values = {key: value for key, value in self.first_values.items() if key in used}
        return True

    def _tensor_before(self, name: str) -> Tensor | None:
        """Return the tensor that stood at a name at the last update, if it had a row."""
        return self.row_of[name].tensor if name in self.row_of else None

    def leave(self) -> None:
        """Let FSDP put its shards back at their names; from now on, what stands there is judged."""
        put_shards_back(self.model)
        self.may_be_gathered = False

    def declare(self, names: Iterable[str]) -> list[Followed]:
        """Declare names frozen, and return the rows that were not frozen before: they must keep their present values."""
        self.update()
        self.declared |= set(names)
        newly = [row for row in self.rows if not row.frozen and self._is_declared(row.names)]
        for row in newly:
            row.frozen = True
        return newly

    def declared_names(self, selection: Selection) -> set[str]:
        """Return the names of the model at which the tensors of a selection stand, or stood when it was made."""
        tensors = {**selection.parameters, **selection.buffers}
        ids = {id(tensor) for tensor in tensors.values()}
        names = set[str]()
        for row in self.rows:
            if id(row.tensor) in ids or not tensors.keys().isdisjoint(row.names):
                names |= selection.names.intersection(row.names) or set(row.names)
        return names

    def undeclare(self, names: Iterable[str]) -> list[Followed]:
        """Declare names trainable again, and return the rows that were frozen before and are not any more."""
        self.declared -= set(names)
        return [row for row in self.rows if row.frozen and not self._is_declared(row.names)]

    def begin_span(self, row: Followed, step: int, made: int, *, copied: Tensor) -> None:
        """Begin a span in which the tensor of a row is declared frozen.

        `step`: the number of the last step. `made`: how many steps all optimizers together have made. `copied`: an
        earlier copy of the tensor; if it still has the same bits, no other is made.
        """
        row.reference = copied if same_bits(copied, row.tensor) else copy_of(row.tensor)
        row.frozen_since = made
        row.evidence, row.window = Evidence(), Window(step)

    def end_span(self, row: Followed, step: int, made: int) -> None:
        """End the span in which the tensor of a row was declared frozen; the arguments are those of `begin_span`.

        Its bits have just been compared. A span without a step of any optimizer does not count, unless the tensor has
        changed in it.
        """
        span = FrozenSpan(row.evidence.differed and not same_bits(row.reference, row.tensor), row.evidence)
        if made > row.frozen_since or span.moved or span.evidence.differed:
            row.ended_spans.append(span)
        row.frozen, row.reference = False, self._first_value(row.tensor)
        row.evidence, row.window = Evidence(), Window(step)

    def initial_value(self, row: Followed) -> Tensor:
        """Return the value with which a row is compared for its norms.

        This is its reference; for a tensor that was declared trainable again, it is the value that it had when it was first
        seen, so that the norms are those of the whole block.
        """
        return self._first_value(row.tensor) if row.ended_spans else row.reference

    def merge_split_rows(self) -> None:
        """Put names back into the row that they were split from, where both are about the same tensor again."""
        for row in [row for row in self.rows if row.split_from]:
            original = row.split_from
            assert original is not None
            if row.tensor is original.tensor and row.reference is original.reference:
                original.names += row.names
                original.frozen |= row.frozen
                original.evidence.merge(row.evidence)
                self.rows.remove(row)

    def forget(self) -> None:
        """Drop all rows and copies of tensors."""
        for mapping in (self.row_of, self.entries, self.entry_of, self.first_values):
            mapping.clear()
        for values in (self.rows, self.names, self.tensors):
            values.clear()

    def frozen_ids(self) -> set[int]:
        """Return the ids of the tensors that are declared frozen now."""
        return {id(row.tensor) for row in self.rows if row.frozen}

    def aliases(self, row: Followed) -> list[str]:
        """Return the other names that the tensor of a row has in the model, at the last update."""
        entry = self.entry_of.get(id(row.tensor))
        return [] if entry is None else [name for name in entry.names if name != row.name]

    def _add(self, row: Followed) -> None:
        """Add a row; its names are then about it."""
        row.frozen = self._is_declared(row.names)
        self.rows.append(row)
        self.row_of.update(dict.fromkeys(row.names, row))

    def _is_declared(self, names: Iterable[str]) -> bool:
        """Return whether one of the names is declared frozen."""
        return not self.declared.isdisjoint(names)

    def _first_value(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor as it was when it was first seen, which may be now."""
        if id(tensor) not in self.first_values:
            self.first_values[id(tensor)] = tensor, copy_of(tensor)
        return self.first_values[id(tensor)][1]

    def _follow(self, row: Followed, at_name: dict[str, TensorEntry]) -> None:
        """Find what stands at the names of a row now; names at which another tensor stands get a row of their own.

        `at_name`: {name: entry of the model now}. If no name of the row is left with its tensor, the row itself goes over to
        the other tensor.
        """
        moved: dict[int, list[str]] = {}
        for name in row.names:
            entry = at_name.get(name)
            if entry is not None and entry.tensor is not row.tensor:
                moved.setdefault(id(entry.tensor), []).append(name)
        if not moved:
            return
        left = [name for name in row.names if not any(name in names for names in moved.values())]
        stays = any(name in at_name for name in left) or self._is_declared(left)
        for names in moved.values():
            if stays:
                other = replace(row, names=names, split_from=row, evidence=Evidence(), window=Window(row.window.begin))
                row.names = [name for name in row.names if name not in names]
                row.frozen = self._is_declared(row.names)
                self._add(other)
            else:
                other, stays = row, True  # the first other tensor takes over the row and the names that are gone
            self._take_over(other, at_name[names[0]])

    def _take_over(self, row: Followed, entry: TensorEntry) -> None:
        """Let a row be about the tensor of `entry`, which was put at its names.

        A frozen row leaks if the tensor has other bits than its reference. The row of a trainable parameter begins anew;
        that of a buffer goes on, for code often assigns the next value of a buffer: `self.average = self.average * 0.9`.
        """
        first_value = self._first_value(entry.tensor)
        row.entry, row.tensor = entry, entry.tensor
        if not row.frozen and row.kind == "parameter":
            row.reference, row.evidence, row.window = first_value, Evidence(), Window()
        elif row.frozen and not row.evidence.differed and not self._began_equal(row, first_value):
            row.evidence.replaced = "dtype_changed" if is_conversion(row.reference, row.tensor) else "replaced"

    @staticmethod
    def _began_equal(row: Followed, first_value: Tensor) -> bool:
        """Return whether the tensor of a row has the bits of its reference, or had them before it was stepped."""
        return same_bits(row.reference, row.tensor) or same_bits(row.reference, first_value)


def is_conversion(before: Tensor, after: Tensor) -> bool:
    """Return whether `after` has another dtype than `before`, and the values of `before` converted to it."""
    if not has_values(before) or not has_values(after):
        return False
    if before.dtype == after.dtype or before.shape != after.shape or not has_arithmetic(before) or not has_arithmetic(after):
        return False
    return same_bits(before.to(after.dtype), after)

"""What is left of an audit after the last step that it watches: digests of frozen and idle tensors, compared on leaving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from runner.contract import names_in
from runner.errors import ConfigError, listed
from runner.freezing.selection import Selection
from runner.proof.audit_report import Frozen, Report
from runner.proof.changes import digest_of
from runner.proof.following import Followed, new_row
from runner.proof.results.notes import unchanged_since_unfrozen
from runner.proof.results.rows import as_changed_unwatched, as_trained_late, as_unknown_leak, make_row, unknown_cause_notes
from runner.shards import put_shards_back
from runner.tensors import names_and_tensors, tensor_entries


@dataclass
class DigestedTensor:
    """A frozen or idle tensor of which only a digest was kept.

    Attributes:
        position: the index of its row in the report.
        names: the names that were declared frozen and that held it; of an idle tensor, that of its row.
        tensor: the tensor itself.
        digest: a digest of its bits when it was last found unchanged.
    """

    position: int
    names: list[str]
    tensor: Tensor
    digest: str


class DigestWatcher:
    """Compares tensors once, on leaving, with digests of what they were after the last step that was watched.

    A frozen one that differs has leaked; an idle one that differs was trained after all.

    Args:
        model: the model that is trained.
        report: the report, with all rows as of that step.
        until: the number of that step.
        as_selection: turns patterns into a Selection.
    """

    def __init__(self, model: nn.Module, report: Report, until: int, *, as_selection: Callable[[Frozen], Selection]) -> None:
        self.model, self.report, self.until, self.as_selection = model, report, until, as_selection
        self.row_of = {name: number for number, row in enumerate(report.rows) for name in names_in(row)}
        self.watched: dict[int, DigestedTensor] = {}  # by id of a tensor
        self.declared: dict[str, Tensor] = {}  # {name: tensor}, of those that have leaked too
        self.unfrozen: dict[int, DigestedTensor] = {}  # by id of a tensor, of those that held until then
        self.idle: dict[int, DigestedTensor] = {}  # by id of a tensor, of those that no step has trained

    def end_phase(self) -> None:
        """Do nothing: after the last step that is watched there are no phases."""

    def freeze(self, frozen: Frozen) -> None:
        """Declare more tensors frozen: they must keep their present values."""
        selection = self.as_selection(frozen)
        found = _by_name(selection, self.model)
        if not found and (selection.parameters or selection.buffers):
            raise ConfigError("frozen: no tensor of this Selection is in the model")
        self.report.is_empty &= not found
        for name, tensor in found.items():
            self._watch_frozen(name, tensor)

    def unfreeze(self, frozen: Frozen) -> None:
        """Compare tensors with their digests, and declare them trainable again.

        Raises ConfigError if none of them is declared frozen.
        """
        selection = self.as_selection(frozen)
        wanted = _by_name(selection, self.model)
        if wanted.keys().isdisjoint(self.declared):
            given = listed([*selection.parameters, *selection.buffers], most=4)
            raise ConfigError(f"unfreeze: not declared frozen: {given}")
        found = [each for each in self.watched.values() if not wanted.keys().isdisjoint(each.names)]
        self._compare(found)
        for each in found:
            self.unfrozen[id(each.tensor)] = self.watched.pop(id(each.tensor))
        self.declared = {name: tensor for name, tensor in self.declared.items() if name not in wanted}

    def declared_tensors(self) -> dict[str, Tensor]:
        """Return {name declared frozen now: the tensor at it}."""
        return self.declared

    def pause(self) -> AbstractContextManager[None]:
        """Do nothing in the block: no hook is left that would notice what it does."""
        return nullcontext()

    def stop(self) -> None:
        """Do nothing: no step is watched any more."""

    def finish(self) -> None:
        """Compare all frozen tensors, and those that were idle, with their digests, and complete the report."""
        self._compare(list(self.watched.values()))
        for each in self.idle.values():
            if digest_of(each.tensor) != each.digest:
                self.report.rows[each.position] = as_trained_late(self.report.rows[each.position])
        same = [each.names[0] for each in self.unfrozen.values() if not self._record_move(each)]
        self.report.not_training += unchanged_since_unfrozen(same)
        late = [row["name"] for row in self.report.rows if row["verdict"] == "leaked" and row["seen_at"] is None]
        reasons = dict.fromkeys(late, f"changed after step {self.until}, the last watched")
        self.report.why_unknown.update(reasons)
        self.report.notes += unknown_cause_notes([self.report.rows[self.row_of[name]] for name in late], reasons)
        self.report.ended = True

    def watch(self, declared: dict[str, Tensor], rows: Sequence[Followed]) -> None:
        """Keep a digest of each tensor that is declared frozen or is idle: later steps may train it.

        `declared`: {name declared frozen: the tensor at it}. `rows`: what the rows of the report are about, in their order.
        """
        for name, tensor in declared.items():
            self._watch_frozen(name, tensor)
        for position, (followed, row) in enumerate(zip(rows, self.report.rows, strict=True)):
            if row["verdict"] == "idle":
                tensor = followed.tensor
                self.idle[id(tensor)] = DigestedTensor(position, [followed.name], tensor, digest_of(tensor))

    def _watch_frozen(self, name: str, tensor: Tensor) -> None:
        """Keep a digest of a tensor that is declared frozen at this name, unless its row has leaked already."""
        self.declared[name] = tensor
        for each in filter(None, (self.unfrozen.pop(id(tensor), None), self.idle.pop(id(tensor), None))):
            self._record_move(each)
        if id(tensor) in self.watched:
            self.watched[id(tensor)].names.append(name)
            return
        if name not in self.row_of:
            entry = next(entry for entry in tensor_entries(self.model).values() if name in entry.names)
            aliases = [alias for alias in entry.names if alias != name]
            row, _ = make_row(new_row(entry, [name], tensor), tensor, aliases=aliases, group="", lr=None, steps_seen=True)
            self.row_of[name] = len(self.report.rows)
            self.report.rows.append(row)
        row = self.report.rows[self.row_of[name]]
        if row["verdict"] != "leaked":
            if not row["frozen"]:
                row.update({"frozen": True, "verdict": "held", "cause": "", "seen_at": None})
            self.watched[id(tensor)] = DigestedTensor(self.row_of[name], [name], tensor, digest_of(tensor))

    def _record_move(self, each: DigestedTensor) -> bool:
        """Return whether a tensor that is not frozen differs from its digest; its row then says that it moved."""
        has_moved = digest_of(each.tensor) != each.digest
        if has_moved:
            self.report.rows[each.position] = as_changed_unwatched(self.report.rows[each.position])
        return has_moved

    def _compare(self, tensors: list[DigestedTensor]) -> None:
        """Compare what stands at the names of these tensors now with their digests; the rows of those that differ leaked."""
        put_shards_back(self.model)
        at_name = dict(zip(*names_and_tensors(self.model), strict=True))
        for each in tensors:
            standing = [at_name[name] for name in each.names if name in at_name] or [each.tensor]
            if any(digest_of(tensor) != each.digest for tensor in {id(tensor): tensor for tensor in standing}.values()):
                self.report.rows[each.position] = as_unknown_leak(self.report.rows[each.position])


def _by_name(selection: Selection, model: nn.Module) -> dict[str, Tensor]:
    """Return {name: tensor} for what a selection declares frozen: its tensors, and what stands at its names now."""
    tensors = {**selection.parameters, **selection.buffers}
    ids, names = {id(tensor) for tensor in tensors.values()}, selection.names or tensors.keys()
    put_shards_back(model)
    at_name = dict(zip(*names_and_tensors(model), strict=True))
    return {name: at for name, at in at_name.items() if name in names or (id(at) in ids and not selection.names)}

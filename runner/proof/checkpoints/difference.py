"""How far two checkpoints are apart: a row for each tensor that both have, read in blocks, with its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.contract import Row
from runner.errors import ConfigError, listed
from runner.proof.audit_report import Report
from runner.proof.checkpoints.names import Pairs, add_tied_names, aliases, frozen_names, paired, refuse_other_base
from runner.proof.checkpoints.stored import StoredCheckpoint, open_pair
from runner.proof.checkpoints.tensor_rows import make_row
from runner.proof.verdict import count_verdicts

LEAST_IN_COMMON = 0.5  # of the names of the smaller checkpoint; with less, they are not of one model


@dataclass(repr=False)
class Difference(Report):
    """What `diff` returns: the report of an audit, whose rows are the tensors that both checkpoints have.

    Attributes:
        before, after: the two checkpoints, as they were given.
        only_before, only_after: the names of tensors that one of them has alone.
        renamed: {name before: name after}, of those to whose names a wrapper has added parts.
        uncompared: the names that were declared frozen and of which an adapter stores nothing.
        in_common: the share of the names of the smaller checkpoint that the other one has.
    """

    before: str = ""
    after: str = ""
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    uncompared: list[str] = field(default_factory=list)
    in_common: float = 1.0

    def __str__(self) -> str:
        count = count_verdicts(self.rows)
        counts = ", ".join(f"{number} {word}" for word, number in count.items() if number)
        is_declared = any(row["frozen"] for row in self.rows)
        nothing = "nothing that was declared frozen was compared" if self.uncompared else "nothing declared frozen"
        word = "LEAKED" if count["leaked"] else "held" if is_declared else nothing
        lines = [f"{word}: {counts or 'no tensor in common'}"]
        if self.leaks:
            lines.append(f"leaked: {listed(self.leaks, most=4)}")
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__


def diff(
    before: str | Path,
    after: str | Path,
    frozen: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    *,
    key: str | None = None,
) -> Difference:
    """Return how two checkpoints differ, tensor by tensor and bit by bit: whether what was declared frozen has held.

    Tensors are read in blocks, so that little memory is needed for checkpoints of any size. Raises ConfigError (a
    ValueError) for patterns that match nothing, for files that cannot be read or change meanwhile, and for checkpoints of
    different models.

    Args:
        before, after: safetensors files, files of `torch.save`, or folders of them, shards with an index included. The
            second may be a peft adapter of the first.
        frozen: patterns of names that were declared frozen; None: nothing was, and rows are `trained` or `idle`.
        keep: patterns of exceptions.
        key: the name of the state dict in a file of `torch.save` that has several.
    """
    if isinstance(frozen, str) or isinstance(keep, str):
        raise ConfigError(f"frozen is {frozen!r} and keep is {keep!r}; give lists of patterns, such as ['backbone']")
    if keep and not frozen:
        raise ConfigError(f"keep is {list(keep)}, and nothing is declared frozen; give patterns, too")
    old, new = open_pair(before, after, key)
    if old.is_adapter and not new.is_adapter:
        raise ConfigError("BEFORE is an adapter, which holds nothing of its base; give the base model first")
    is_added = new.is_adapter and not old.is_adapter  # to the first, so that what it lacks is there all the same
    pairs = paired(old, new)
    add_tied_names(old, new, pairs)
    if is_added:
        refuse_other_base(old, new)
    in_common = _share_in_common(pairs, old, new, may_be_small=is_added)
    declared = frozen_names(old, frozen, keep) if frozen else set[str]()
    uncompared = [name for name in pairs.vanished if name in declared] if is_added else []
    rows = list(_rows(old, new, pairs, declared.difference(uncompared)))
    for checkpoint in (old, new):
        checkpoint.refuse_if_changed()
    found = Difference(rows=rows, before=str(before), after=str(after), in_common=in_common, ended=True)
    found.only_after, found.only_before = pairs.appeared, [] if is_added else pairs.vanished
    found.renamed = {name: pairs.name_after[name] for name in pairs.renamed}
    found.uncompared = uncompared
    found.notes = [*old.notes, *new.notes, *_notes(found, pairs.tied, is_added)]
    return found


def _share_in_common(pairs: Pairs, old: StoredCheckpoint, new: StoredCheckpoint, may_be_small: bool) -> float:
    """Return how much of the names of the checkpoint with fewer names the other one has, between 0 and 1.

    Raises ConfigError if it is less than half and may not be, so that they are not checkpoints of one model.
    """
    fewer = min(len(old.tensors), len(new.tensors))
    share = len(pairs.name_after) / fewer
    if share < LEAST_IN_COMMON and not may_be_small:
        raise ConfigError(
            f"BEFORE and AFTER have {len(pairs.name_after)} of {fewer} names in common ({share:.0%}), so they are of two "
            f"models: {old.path} has {next(iter(old.tensors))}, {new.path} has {next(iter(new.tensors))}"
        )
    return share


def _rows(old: StoredCheckpoint, new: StoredCheckpoint, pairs: Pairs, declared: set[str]) -> Iterator[Row]:
    """Yield a row for each tensor that both have, and for each that was declared frozen and has vanished."""
    other_names = aliases(new)
    for name, tensor in old.tensors.items():
        there = pairs.name_after.get(name)
        if there is not None:
            names = [each for each in (there, *other_names[there]) if each != name]
            yield make_row(name, tensor, new.tensors[there], aliases=names, is_frozen=name in declared)
        elif name in declared:
            yield make_row(name, tensor, None, aliases=[], is_frozen=True)


def _notes(found: Difference, tied: Sequence[str], is_added: bool) -> Iterator[str]:
    """Yield sentences about names that one of the checkpoints lacks, and about what is not compared.

    `tied`: names that are stored after under another name. `is_added`: whether the second is an adapter of the first.
    """
    if is_added:
        yield f"{found.after} is an adapter: it stores what it adds, and leaves the tensors of its base as they are"
    if found.uncompared:
        yield f"declared frozen and not in the adapter, so not compared: {listed(found.uncompared, most=3)}"
    if found.in_common < 1 and not is_added:
        yield f"{found.in_common:.0%} of the names are in common"
    if found.only_before:
        yield f"only in BEFORE: {listed(found.only_before, most=3)}"
    if found.only_after:
        yield f"only in AFTER: {listed(found.only_after, most=3)}"
    if found.renamed:
        name, name_after = next(iter(found.renamed.items()))
        yield f"renamed by a wrapper: {len(found.renamed)}, such as {name} to {name_after}"
    if tied:
        yield f"stored under the name of the tensor that they are tied to: {listed(tied, most=3)}"
    gone = {*found.only_before}
    others = [row["name"] for row in found.rows if row["moved"] and row["initial_l2"] is None and row["name"] not in gone]
    if others:
        yield f"without norms, for the dtype or the shape has changed or has no arithmetic: {listed(others, most=3)}"

"""Which tensor of one checkpoint is which of another, and what patterns of names declare frozen in one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from runner.contract import TensorKind
from runner.errors import ConfigError, listed
from runner.freezing.matching import WRAPPED, Matching
from runner.freezing.patterns import with_parents
from runner.freezing.selection import select
from runner.freezing.words import FOR_CHECKPOINT
from runner.proof.checkpoints.stored import StoredCheckpoint

Shorten = Callable[[str], str]
SAVED_MODULE = re.compile(r"modules_to_save\.[^.]+\.")  # in the names of a module that peft trains a copy of
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # by the last part of a name; all else are parameters


@dataclass
class Pairs:
    """The names of one checkpoint in the other.

    Attributes:
        name_after: {name before: its name after}.
        renamed: those of them whose names differ, by the parts that a wrapper such as `torch.compile` adds.
        tied: those that are stored after under the name of a tensor that they were tied to.
        vanished, appeared: the names that are in one of them only.
    """

    name_after: dict[str, str] = field(default_factory=dict)
    renamed: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    appeared: list[str] = field(default_factory=list)


def kind_of(name: str) -> TensorKind:
    """Return whether a name is that of a buffer: one of BatchNorm's statistics."""
    return "buffer" if name.rpartition(".")[2] in BUFFERS else "parameter"


def paired(before: StoredCheckpoint, after: StoredCheckpoint) -> Pairs:
    """Return which names of two checkpoints are of one tensor: equal ones first, then those that a wrapper has changed."""
    pairs = Pairs(name_after={name: name for name in before.tensors if name in after.tensors})
    left = [name for name in before.tensors if name not in pairs.name_after]
    new = [name for name in after.tensors if name not in before.tensors]
    ways: list[tuple[Shorten, Shorten]] = []
    if left and new:
        ways = [(_shortener(before), _shortener(after)), (bare_name, bare_name)]
    for shorten_before, shorten_after in ways:  # first only parts that are a wrapper's by their place in the model
        taken = set(pairs.name_after.values())
        old = _unique({name: shorten_before(name) for name in left if name not in pairs.name_after})
        found = _unique({name: shorten_after(name) for name in new if name not in taken})
        pairs.name_after |= {name: found[short] for short, name in old.items() if short in found}
        pairs.renamed += [name for short, name in old.items() if short in found]
    found_at = {before.tensors[name].place: other for name, other in pairs.name_after.items()}
    for name in left:
        if name not in pairs.name_after and before.tensors[name].place in found_at:  # a file keeps one of tied tensors
            pairs.name_after[name] = found_at[before.tensors[name].place]
            pairs.tied.append(name)
    used = set(pairs.name_after.values())
    pairs.vanished = [name for name in before.tensors if name not in pairs.name_after]
    pairs.appeared = [name for name in new if name not in used]
    return pairs


def _shortener(checkpoint: StoredCheckpoint) -> Shorten:
    """Return a function that takes the name of a tensor and returns it without the parts that wrappers add."""
    matching = Matching(skeleton(checkpoint))

    def shorten(name: str) -> str:
        module, _, last = name.rpartition(".")
        return f"{matching.without_wrappers(module)}.{last}".lstrip(".")

    return shorten


def bare_name(name: str) -> str:
    """Return a name without any part that is one of a wrapper's, such as `base_layer`, wherever it stands."""
    return ".".join(part for part in SAVED_MODULE.sub("", name).split(".") if part not in WRAPPED)


def _unique(short: Mapping[str, str]) -> dict[str, str]:
    """Return {short name: name} for the short names that only one of these names has."""
    counts = Counter(short.values())
    return {each: name for name, each in short.items() if counts[each] == 1}


def add_tied_names(before: StoredCheckpoint, after: StoredCheckpoint, pairs: Pairs) -> None:
    """Give the first checkpoint the names of tied tensors that only the second has, where a file has kept one of them."""
    name_at = {after.tensors[there].place: name for name, there in pairs.name_after.items()}
    for name in list(pairs.appeared):
        if (first := name_at.get(after.tensors[name].place)) is not None:
            before.tensors[name] = before.tensors[first]
            pairs.name_after[name] = name
            pairs.appeared.remove(name)


def refuse_other_base(base: StoredCheckpoint, adapter: StoredCheckpoint) -> None:
    """Raise ConfigError if no module that an adapter names is in a checkpoint, which is then not its base."""
    modules = {part for name in base.tensors for part in with_parents(bare_name(name))[1:]}
    named = {part for name in adapter.tensors for part in with_parents(bare_name(name))[1:]}
    if named and modules.isdisjoint(named):
        raise ConfigError(
            f"AFTER is an adapter of {listed(sorted(named), most=2)}, and BEFORE has no such module: not its base model"
        )


def frozen_names(checkpoint: StoredCheckpoint, patterns: Sequence[str], keep: Sequence[str]) -> set[str]:
    """Return the names of the tensors that patterns declare frozen; as in a model, a buffer only if one names it in full.

    Raises ConfigError for patterns that match nothing, and for those that need a model: `@head` and `type:Linear`.
    """
    for pattern in (*patterns, *keep):
        if isinstance(pattern, str) and pattern.startswith(("@", "type:")):
            raise ConfigError(f"{pattern!r} needs a model, and a checkpoint has only names; give names, such as backbone")
    return set(select(skeleton(checkpoint), list(patterns), keep=list(keep), words=FOR_CHECKPOINT).names)


def skeleton(checkpoint: StoredCheckpoint) -> nn.Module:
    """Return modules without computation that have the names of a checkpoint's tensors, and its ties, on the meta device."""
    root = nn.Module()
    parameter_at: dict[object, nn.Parameter] = {}
    for name, tensor in checkpoint.tensors.items():
        *modules, last = name.split(".")
        module = root
        for part in modules:
            module = module._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        empty = torch.empty(0, device="meta")
        if kind_of(name) == "buffer":
            module._buffers[last] = empty
        else:
            parameter = parameter_at.setdefault(tensor.place, nn.Parameter(empty, requires_grad=False))
            module._parameters[last] = parameter
    return root


def aliases(checkpoint: StoredCheckpoint) -> dict[str, list[str]]:
    """Return {name: the other names of the same tensor}."""
    names_at: dict[object, list[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        names_at.setdefault(tensor.place, []).append(name)
    return {name: [each for each in names if each != name] for names in names_at.values() for name in names}

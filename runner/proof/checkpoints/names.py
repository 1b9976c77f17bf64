"""Which tensor of one checkpoint is which of another, and what patterns of names declare frozen in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from runner.contract import TensorKind
from runner.errors import ConfigError
from runner.freezing.matching import Matching
from runner.freezing.selection import select
from runner.freezing.words import FOR_CHECKPOINT
from runner.proof.checkpoints.stored import StoredCheckpoint

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
    old_by_short, new_by_short = _by_short_name(before, left), _by_short_name(after, new)
    for short, name in old_by_short.items():
        if short in new_by_short:
            pairs.name_after[name] = new_by_short[short]
            pairs.renamed.append(name)
    found_at = {before.tensors[name].place: other for name, other in pairs.name_after.items()}
    for name in left:
        if name not in pairs.name_after and before.tensors[name].place in found_at:  # a file keeps one of tied tensors
            pairs.name_after[name] = found_at[before.tensors[name].place]
            pairs.tied.append(name)
    used = set(pairs.name_after.values())
    pairs.vanished = [name for name in before.tensors if name not in pairs.name_after]
    pairs.appeared = [name for name in new if name not in used]
    return pairs


def _by_short_name(checkpoint: StoredCheckpoint, names: Sequence[str]) -> dict[str, str]:
    """Return {name without the parts that wrappers add: name} for those of these names for which it is no other's, too."""
    matching = Matching(skeleton(checkpoint))
    short = {name: _without_wrappers(name, matching) for name in names}
    counts = Counter(short.values())
    return {each: name for name, each in short.items() if counts[each] == 1}


def _without_wrappers(name: str, matching: Matching) -> str:
    """Return the name of a tensor without the parts that wrappers add."""
    module, _, last = name.rpartition(".")
    return f"{matching.without_wrappers(module)}.{last}".lstrip(".")


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

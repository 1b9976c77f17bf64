"""Find which beginning the names in a checkpoint have too much or too little, compared with those in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from runner.tensors.checkpoint import Tensors

Shape = tuple[int, ...] | None  # None: of what is no tensor, or a lazy parameter


def with_names_of_model(tensors: Tensors, model: nn.Module, key: str) -> tuple[Tensors, list[str]]:
    """Return the tensors of a checkpoint under the names that they have in the model, and a list of notes about that.

    A wrapper such as `DataParallel`, or a model that contains another one, gives names a beginning, such as `module.` or
    `bert.`. Tried are removing what all names begin with, removing the first part of a name, and adding the name of a child
    of the model; kept is that with which most names and shapes are those of the model. The names stay as they are if that is
    as good, if few of them are found, or if two changes are equally good; a change that gives two tensors one name is none.
    """
    wanted = {name: shape_of(each) for name, each in model.state_dict().items()}
    given = {name: shape_of(each) for name, each in tensors.items()}
    children = ["", *(f"{name}." for name, _ in model.named_children())]
    changes = [(removed, added) for removed in _beginnings([*given]) for added in children]
    changes = [change for change in changes if len({renamed(name, *change) for name in given}) == len(given)]
    fits = {change: _fitting(given, wanted, change) for change in changes}
    most = max(fits.values())
    best = sorted((change for change in changes if fits[change] == most), key=_size)
    is_clear = 2 * most[1] > len(tensors) and [_size(change) for change in best].count(_size(best[0])) == 1
    if not is_clear or not _size(best[0]):
        return tensors, []
    removed, added = best[0]
    said = [f"without {removed}" if removed else "", f"below {added.removesuffix('.')}" if added else ""]
    return _renamed(tensors, removed, added), [f"{key}: the names in it are read {' and '.join(filter(None, said))}"]


def shape_of(value: object) -> Shape:
    """Return the shape of a tensor; None if it is none, or if it is not initialised yet."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) and not is_lazy(value) else None


def renamed(name: str, removed: str, added: str) -> str:
    """Return a name without the beginning `removed`, if it has it, and with the beginning `added`."""
    return added + name.removeprefix(removed)


def _beginnings(names: Sequence[str]) -> Iterator[str]:
    """Yield each beginning of names that may be removed, "" first: what all begin with, and the first part of each."""
    modules = [name.split(".")[:-1] for name in names]
    pairs = zip(min(modules, default=[]), max(modules, default=[]), strict=False)  # the least alike, in this order
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    found = ["", *(".".join(shared[:count]) + "." for count in range(1, len(shared) + 1))]
    yield from dict.fromkeys([*found, *(name.partition(".")[0] + "." for name in names if "." in name)])


def _size(change: tuple[str, str]) -> int:
    """Return how many parts of a name are removed and added."""
    return change[0].count(".") + change[1].count(".")


def _fitting(given: Mapping[str, Shape], wanted: Mapping[str, Shape], change: tuple[str, str]) -> tuple[int, int]:
    """Return how many names, once they are renamed, are names in the model of the same shape, and of any shape."""
    found = {new: shape for name, shape in given.items() if (new := renamed(name, *change)) in wanted}
    return sum(wanted[name] == shape for name, shape in found.items()), len(found)


def _renamed(tensors: Tensors, removed: str, added: str) -> Tensors:
    """Return the tensors under their new names; the versions that a `state_dict` has for its modules go with them."""
    result = type(tensors)((renamed(name, removed, added), each) for name, each in tensors.items())
    if (versions := getattr(tensors, "_metadata", None)) is not None:
        modules = {(f"{name}." if name else ""): each for name, each in versions.items()}
        moved = {renamed(name, removed, added).removesuffix("."): each for name, each in modules.items()}
        result._metadata = moved  # type: ignore[attr-defined]
    return result

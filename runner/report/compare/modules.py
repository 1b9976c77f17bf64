"""The modules of a model as a tree, told from the names of its tensors, such as `layer1.0.conv1.weight`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Generic, TypeVar

Item = TypeVar("Item")
MAX_DEPTH = 20  # levels of the tree; of a name with more parts, the last ones stay together


@dataclass
class Module(Generic[Item]):
    """A module of a model.

    Attributes:
        name: its dotted name, such as `layer1.0`; empty for the model itself.
        tensors: what was given for its own parameters and buffers: (last part of the name, item).
        modules: {name in this module: module} of the modules in it.
    """

    name: str
    tensors: list[tuple[str, Item]] = field(default_factory=list)
    modules: dict[str, Module[Item]] = field(default_factory=dict)

    def items(self) -> Iterator[Item]:
        """Yield the items of its own tensors, then those of the tensors in the modules in it."""
        yield from (item for _, item in self.tensors)
        for module in self.modules.values():
            yield from module.items()


def build_tree(named: Iterable[tuple[str, Item]]) -> Module[Item]:
    """Return the model whose tensors are given as (name, item); an item may be anything that is known of the tensor."""
    root: Module[Item] = Module("")
    for name, item in named:
        *path, last = name.split(".", MAX_DEPTH)
        module = root
        for part in path:
            if part not in module.modules:
                module.modules[part] = Module(f"{module.name}.{part}" if module.name else part)
            module = module.modules[part]
        module.tensors.append((last, item))
    return root


def divide(root: Module[Item], size: int, most: int) -> list[tuple[str, list[Item]]]:
    """Return (name, items) of modules that together have all tensors of a model, in the model's order.

    The model is divided into its own tensors and the modules in it; then the module with the most tensors is, and the next,
    as long as it has more than `size` tensors. No division makes more than `most` parts. The own tensors of what was divided
    are a part under its name.
    """
    order = {id(module): number for number, module in enumerate(_walk(root))}

    def entry(module: Module[Item]) -> tuple[int, int, Module[Item]]:
        return -sum(1 for _ in module.items()), order[id(module)], module

    parts: list[tuple[int, str, list[Item]]] = []
    pending = [entry(root)]
    while pending:
        tensors, number, module = heappop(pending)
        after = len(parts) + len(pending) + len(module.modules) + bool(module.tensors)
        if (-tensors <= size and module is not root) or not module.modules or after > most:
            parts.append((number, module.name, list(module.items())))
            continue
        if module.tensors:
            parts.append((number, module.name, [item for _, item in module.tensors]))
        for child in module.modules.values():
            heappush(pending, entry(child))
    return [(name, items) for _, name, items in sorted(parts, key=lambda part: part[0])]


def _walk(module: Module[Item]) -> Iterator[Module[Item]]:
    """Yield a module, then each module below it, in the order of their tensors."""
    yield module
    for child in module.modules.values():
        yield from _walk(child)

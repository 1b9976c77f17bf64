"""Find the chain of a model: the like modules that follow one another in it, such as the stages of a ResNet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from torch import nn

from runner.freezing.covering import by_part
from runner.freezing.parts.blocks import CONTAINERS

Chain = list[list[str]]
"""The members of a chain in the order of their registration; each is a list of names of modules, mostly of one."""


def main_chain(model: nn.Module) -> Chain:
    """Return the chain of a model that holds the most parameter tensors, the first of equals; [] if there is no chain.

    A chain is two or more modules of one class that follow one another among the children of a module: `layer1` to `layer4`
    of a ResNet. Children without parameters do not count. A group of classes may take the place of the one class, such as a
    convolution and its BatchNorm; then each member of the chain is such a group, and the last one may be incomplete. Modules
    that are mere containers (Sequential, ModuleList, ModuleDict) form a chain only if two of them hold modules of the same
    classes: the `features` and the `classifier` of a VGG do not. A module that is registered several times is one.

    A chain within a member of another chain has fewer parameters than that one: the six blocks of a ResNet-50's `layer3` are
    not its chain.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    modules = dict(model.named_modules(remove_duplicate=False))
    return max(_chains(names, modules, ""), key=lambda each: each[0], default=(0, []))[1]


def children_with_parameters(names: Sequence[str], modules: Mapping[str, nn.Module], prefix: str) -> dict[str, list[str]]:
    """Return {name of a module directly below `prefix`: names of the parameters in it}.

    `names`: of all parameters below `prefix`, which is "" or ends with a dot. `modules`: {name: module}.
    """
    return {part: within for part, within in by_part(names, prefix).items() if part in modules}


def _chains(names: Sequence[str], modules: Mapping[str, nn.Module], prefix: str) -> Iterator[tuple[int, Chain]]:
    """Yield (number of parameter tensors, chain) for the chains below `prefix`; see `main_chain`."""
    children = children_with_parameters(names, modules, prefix)
    contents = {child: _contents(child, within, modules) for child, within in children.items()}
    for chain in _repetitions([*children], [_class_of(modules[child]) for child in children]):
        members = {tuple(id(modules[child]) for child in member) for member in chain}
        like = {tuple(contents[child] for child in member) for member in chain}
        if len(members) > 1 and len(like) < len(chain):
            yield sum(len(children[child]) for member in chain for child in member), chain
    for child, within in children.items():
        yield from _chains(within, modules, f"{child}.")


def _repetitions(names: Sequence[str], kinds: Sequence[object]) -> Iterator[Chain]:
    """Yield each longest stretch in which the kinds repeat, first one kind, then groups of two kinds, of three, and so on.

    `kinds`: the kind of each name. A stretch is the list of its groups of names; the last one may be incomplete.
    """
    for size in range(1, len(names) // 2 + 1):
        first = 0
        for is_repeated, places in groupby(one == other for one, other in zip(kinds, kinds[size:], strict=False)):
            count = len(list(places))
            if is_repeated and count >= size:
                stretch = names[first : first + count + size]
                yield [[*stretch[place : place + size]] for place in range(0, len(stretch), size)]
            first += count


def _class_of(module: nn.Module) -> tuple[str, str]:
    """Return what is the same for modules of one class: names, as each parametrized layer has a class object of its own."""
    return type(module).__module__, type(module).__qualname__


def _contents(name: str, within: Sequence[str], modules: Mapping[str, nn.Module]) -> object:
    """Return the class of a module; of a container, the classes of the modules with parameters that it holds."""
    if type(modules[name]) not in CONTAINERS:
        return _class_of(modules[name])
    return frozenset(_class_of(modules[child]) for child in children_with_parameters(within, modules, f"{name}."))

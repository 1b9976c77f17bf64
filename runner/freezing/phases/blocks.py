"""Cut what is declared frozen into blocks, such as the stages of a ResNet, which a schedule freezes and thaws one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from torch import nn

from runner.errors import ConfigError, short_repr
from runner.freezing.covering import by_part, covering_name
from runner.freezing.parts.chain import Chain, children_with_parameters, main_chain
from runner.freezing.patterns import parse, parse_all
from runner.freezing.phases.restriction import require_selected
from runner.freezing.resolver import PatternResolver
from runner.freezing.selection import Selection
from runner.freezing.words import FOR_CONFIG
from runner.tensors import tensor_entries

KEY = "schedule.blocks"
EXPECTED = "give auto, or a list with a pattern or a list of patterns for each block, such as [[conv1,bn1],layer1,layer2]"


class _Part(NamedTuple):
    """A part of a model: the module's name ("" if it is no single module), and the names of all parameters in it."""

    module: str
    names: Sequence[str]


def selected_blocks(
    model: nn.Module, selection: Selection, blocks: str | Sequence[str | Sequence[str]] = "auto"
) -> dict[str, tuple[str, ...]]:
    """Return {name of a block: the names of its selected parameters}, from the input to the head; none is in two blocks.

    `blocks`: "auto", or a list.

    - "auto": the blocks are the members of the model's chain of like modules (see `main_chain`), what is registered before
      the chain, and what is registered behind it; in a model without a chain, its modules. Every selected parameter is in a
      block. A selected tensor that is registered in several blocks joins them into one, at the place of the last of them. A
      block is named after its module, or after the first and the last of several: `conv1..bn1`. The names of joined blocks
      are joined by `+`.
    - A list has an entry for each block, in their order: a pattern or a list of patterns, which is also the block's name. A
      parameter is in the block of the first entry that matches it, and in none if no entry does.

    Raises ConfigError if no parameter is selected, or if `blocks` is neither "auto" nor such a list, or has an entry that
    matches nothing in the model, nothing that is selected, or only what is in earlier blocks.
    """
    if blocks != "auto" and (not isinstance(blocks, (list, tuple)) or not blocks):
        raise ConfigError(f"{KEY} is {short_repr(blocks)}; {EXPECTED}")
    require_selected(selection)
    return _by_structure(model, selection) if blocks == "auto" else _by_patterns(model, selection, blocks)


def _by_patterns(
    model: nn.Module, selection: Selection, entries: Iterable[str | Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the block of each entry; see `selected_blocks`."""
    resolver = PatternResolver(model, selection.evidence, FOR_CONFIG)
    blocks: dict[str, tuple[str, ...]] = {}
    taken = set[str]()
    for entry in entries:
        patterns = parse_all(entry, KEY) if isinstance(entry, (list, tuple)) else (parse(entry, KEY),)
        if not patterns:
            raise ConfigError(f"{KEY} has an empty list in place of a block; {EXPECTED}")
        text = "+".join(pattern.text for pattern in patterns)
        found = set[str]().union(*(resolver.resolve(pattern, KEY) for pattern in patterns)) & selection.parameters.keys()
        if not found:
            raise ConfigError(f"{KEY}: {text!r} matches nothing that freeze selects; remove it, or let freeze select it")
        if found <= taken:
            raise ConfigError(f"{KEY}: all that {text!r} matches is in earlier blocks; remove it, or put it before them")
        blocks[text] = tuple(name for name in selection.parameters if name in found - taken)
        taken |= found
    return blocks


def _by_structure(model: nn.Module, selection: Selection) -> dict[str, tuple[str, ...]]:
    """Return the blocks that the structure of a model gives; see `selected_blocks`."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    chain = main_chain(model)
    parts = _around(names, chain) if chain else _modules_in(names, dict(model.named_modules(remove_duplicate=False)))
    part_of = {name: number for number, part in enumerate(parts) for name in part.names}
    names_of = {entry.name: entry.names for entry in tensor_entries(model).values() if entry.name in selection.parameters}
    assert names_of.keys() == selection.parameters.keys(), "the selection is of another model"
    block_of = _joined(len(parts), [{part_of[name] for name in each} for each in names_of.values()])
    selected = {name for each in names_of.values() for name in each}
    words: dict[int, list[str]] = {block: [] for block in sorted(block_of)}
    for part, block in zip(parts, block_of, strict=True):
        if within := selected.intersection(part.names):
            words[block].append(part.module or covering_name(names, within))
    return {
        "+".join(each): tuple(name for name in names_of if block_of[part_of[name]] == block)
        for block, each in words.items()
        if each
    }


def _joined(count: int, ties: Iterable[Set[int]]) -> list[int]:
    """Return for each of `count` parts the last one that it is joined with, itself included.

    `ties`: sets of the numbers of parts that are to be joined.
    """
    last = [*range(count)]
    for tie in ties:
        joined = {last[part] for part in tie}
        last = [max(joined) if each in joined else each for each in last]
    return last


def _around(names: Sequence[str], chain: Chain) -> list[_Part]:
    """Return what is registered before a chain, its members, and what is registered behind it."""
    firsts = [_places(names, member[0])[0] for member in chain]
    end = _places(names, chain[-1][-1])[-1] + 1
    members = [
        _Part(member[0] if len(member) == 1 else "", names[first:last])
        for member, first, last in zip(chain, firsts, [*firsts[1:], end], strict=True)
    ]
    return [_Part("", names[: firsts[0]]), *members, _Part("", names[end:])]


def _places(names: Sequence[str], module: str) -> list[int]:
    """Return the places of a module's parameters among the names."""
    return [place for place, name in enumerate(names) if name.startswith(f"{module}.")]


def _modules_in(names: Sequence[str], modules: Mapping[str, nn.Module], prefix: str = "") -> list[_Part]:
    """Return the modules with parameters below `prefix`, through modules that hold only one; a layer is not divided.

    Parameters that stand beside modules are a part of their own.
    """
    children = children_with_parameters(names, modules, prefix)
    if not children:
        return [_Part(prefix.removesuffix("."), names)]
    beside = [name for name in by_part(names, prefix) if name not in modules]
    parts = [_Part("", beside)] if beside else []
    if len(children) > 1:
        return [*parts, *(_Part(*child) for child in children.items())]
    ((child, within),) = children.items()
    return [*parts, *_modules_in(within, modules, f"{child}.")]

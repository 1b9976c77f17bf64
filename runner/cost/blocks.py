"""The blocks of a model, such as its layers, in the order in which a forward pass runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from runner.freezing.covering import by_part

LARGE = 0.5  # share of the model's elements: a block with more is divided
LEAST_PARTS = 2  # modules in a block that is divided


@dataclass(frozen=True)
class Block:
    """A module, or a parameter that stands beside modules: its name, and the names of its parameters."""

    name: str
    parameters: tuple[str, ...]


def blocks_in_order(model: nn.Module, order: Sequence[str]) -> list[Block]:
    """Return the blocks of a model that have parameters, in the order of a forward pass; a parameter is in one block.

    `order`: the names of the parameters in that order. Blocks are the modules at the top; one that holds more than half of
    the model's elements, such as the list of a transformer's layers, is divided into its own modules.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    names = [name for name in order if name in sizes]
    blocks = _parts(Block("", tuple(names))) or [Block("", tuple(names))]
    while divisible := [each for each in blocks if _is_large(each, sizes) and _parts(each)]:
        place = blocks.index(divisible[0])
        blocks[place : place + 1] = _parts(blocks[place])
    return sorted(blocks, key=lambda each: names.index(each.parameters[0]))


def _is_large(block: Block, sizes: dict[str, int]) -> bool:
    """Return whether a block holds more than half of the model's elements."""
    return sum(sizes[name] for name in block.parameters) > LARGE * sum(sizes.values())


def _parts(block: Block) -> list[Block]:
    """Return the modules and parameters in a block, through modules that hold only one; empty if it holds no two modules."""
    parts = by_part(block.parameters, f"{block.name}." if block.name else "")
    modules = parts.keys() - set(block.parameters)
    if len(parts) == len(modules) == 1:
        return _parts(Block(next(iter(parts)), block.parameters))
    return [Block(name, tuple(names)) for name, names in parts.items()] if len(modules) >= LEAST_PARTS else []

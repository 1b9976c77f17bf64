"""Walk an autograd graph back from a loss to the nodes that first take a weight: a parameter of two or more dimensions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

Node = Any  # of an autograd graph; torch's own type for it has no public name
# Nodes that take some rows of their one input. A row of a weight is no weight but what a layer gives.
MOST_NODES = 16  # that make a weight of a parameter; more make an output
LOOK_UPS = {"EmbeddingBackward0", "GatherBackward0", "IndexBackward0", "IndexSelectBackward0", "TakeBackward0"}


@dataclass(frozen=True)
class Ending:
    """The end of a path from the loss back through the graph.

    Attributes:
        node: the first node on the path that takes a weight.
        weights: the weights that it takes, each itself or through nodes that take nothing else, such as a transpose.
        others: the nodes of its other inputs.
    """

    node: Node
    weights: tuple[Tensor, ...]
    others: tuple[Node, ...]


def endings(roots: Iterable[Tensor], weights: Collection[int]) -> list[Ending]:
    """Return where each path back from the roots ends: at the first nodes that take a weight.

    `weights`: the ids of the weights.
    """
    found, waiting, seen = [], [root.grad_fn for root in roots if root.grad_fn is not None], dict[Node, None]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = None
        taken = {child: _weights_behind(child, weights) for child in _inputs(node)}
        if any(taken.values()):
            mine = tuple(weight for behind in taken.values() for weight in behind)
            found.append(Ending(node, mine, tuple(child for child, behind in taken.items() if not behind)))
        else:
            waiting.extend(taken)
    return found


def reached(starts: Iterable[Node], targets: Collection[Node]) -> set[Node]:
    """Return those of the targets to which the graph leads back from the starts; a start may be one of them itself."""
    waiting, seen = list(starts), dict[Node, None]()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen[node] = None
            waiting.extend(_inputs(node))
    return {node for node in targets if node in seen}


def by_weight(found: Iterable[Ending]) -> Mapping[int, list[Ending]]:
    """Return {id of a weight: where paths end at it, without the other weights that are taken there}."""
    grouped: dict[int, list[Ending]] = {}
    for ending in found:
        for weight in ending.weights:
            grouped.setdefault(id(weight), []).append(replace(ending, weights=(weight,)))
    return grouped


def _inputs(node: Node) -> Iterator[Node]:
    """Yield the nodes that made the inputs of a node."""
    return (child for child, _ in node.next_functions if child is not None)


def _weights_behind(node: Node, weights: Collection[int]) -> tuple[Tensor, ...]:
    """Return the weights if nothing but parameters leads to a node, such as by a transpose, or two by their product.

    A node that looks something up, or takes a tensor without a gradient, makes an output of a layer, not a weight; one that
    gives a single number, such as a penalty on a weight, makes a part of a loss.
    """
    if not any(each.shape for each in node._input_metadata):  # of what the node gave in the forward pass
        return ()
    waiting, leaves, count = [node], dict[int, Tensor](), 0
    while waiting:
        node = waiting.pop()
        if (variable := getattr(node, "variable", None)) is not None:  # the node stands for a tensor without a history
            leaves[id(variable)] = variable
            continue
        before = [child for child, _ in node.next_functions]
        count += 1
        if not before or None in before or type(node).__name__ in LOOK_UPS or count > MOST_NODES:
            return ()
        waiting.extend(before)
    if not all(isinstance(leaf, nn.Parameter) for leaf in leaves.values()):
        return ()
    return tuple(leaf for key, leaf in leaves.items() if key in weights)

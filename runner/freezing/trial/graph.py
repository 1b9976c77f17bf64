"""Walk an autograd graph back from a loss to the nodes that first take a weight: a parameter of two or more dimensions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

Node = Any  # of an autograd graph; torch's own type for it has no public name
MOST_NODES = 16  # that make a weight of a parameter; more make an output
# Nodes that mix the elements of what they take. Others take element by element: a vector there is a scale or a bias.
PRODUCTS = re.compile("mm|mv|dot|conv|linear|embedding|rnn|lstm|gru|attention", re.I)
HIDING = "CheckpointFunctionBackward"  # a reentrant checkpoint: what it computed is not in the graph
# Nodes that take some rows of their one input. A row of a weight is no weight but what a layer gives.
LOOK_UPS = {"EmbeddingBackward0", "GatherBackward0", "IndexBackward0", "IndexSelectBackward0", "TakeBackward0"}


@dataclass(frozen=True)
class Ending:
    """The end of a path from the loss back through the graph.

    Attributes:
        node: the first node on the path that takes a weight, or that hides what it took.
        weights: the weights that it takes, each itself or through nodes that take nothing else, such as a transpose; none if
            the node hides them.
        others: the nodes of its other inputs.
        is_term: whether it takes a matrix element by element with what a layer gives, such as one that is added to that.
    """

    node: Node
    weights: tuple[Tensor, ...]
    others: tuple[Node, ...]
    is_term: bool = False


def endings(roots: Iterable[Tensor], weights: Collection[int]) -> list[Ending]:
    """Return where each path back from the roots ends: at the first nodes that take a weight.

    `weights`: the ids of the weights. A path goes on where a node takes a matrix element by element with a layer's output.
    """
    found, waiting, seen = [], [root.grad_fn for root in roots if root.grad_fn is not None], dict[Node, None]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = None
        taken = {child: _taken_from(child, node, weights) for child in _inputs(node)}
        mine = tuple(weight for behind in taken.values() for weight in behind)
        others = tuple(child for child, behind in taken.items() if not behind)
        if type(node).__name__ == HIDING:
            found.append(Ending(node, (), ()))
        elif mine:
            is_term = not PRODUCTS.search(type(node).__name__) and bool(_leaves(others) - {*map(id, mine)})
            found.append(Ending(node, mine, others, is_term))
        if not mine or found[-1].is_term:
            waiting.extend(others)
    return found


def parameters_reached(roots: Iterable[Tensor]) -> set[int]:
    """Return the ids of the parameters, and of other tensors without a history, that the roots were computed from."""
    return _leaves([root.grad_fn for root in roots if root.grad_fn is not None])


def _leaves(starts: Iterable[Node]) -> set[int]:
    """Return the ids of the tensors without a history to which the graph leads back from the starts."""
    return {id(node.variable) for node in _all_reached(starts) if hasattr(node, "variable")}


def reached(starts: Iterable[Node], targets: Collection[Node]) -> set[Node]:
    """Return those of the targets to which the graph leads back from the starts; a start may be one of them itself."""
    seen = _all_reached(starts)
    return {node for node in targets if node in seen}


def _all_reached(starts: Iterable[Node]) -> dict[Node, None]:
    """Return the nodes to which the graph leads back from the starts, and these, as the keys of a dict."""
    waiting, seen = list(starts), dict[Node, None]()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen[node] = None
            waiting.extend(_inputs(node))
    return seen


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


def _taken_from(child: Node, node: Node, weights: Collection[int]) -> tuple[Tensor, ...]:
    """Return the weights that a node takes from one of its inputs; a scale of the shape (1, channels, 1, 1) is none."""
    behind = _weights_behind(child, weights)
    if PRODUCTS.search(type(node).__name__):
        return behind
    return tuple(weight for weight in behind if weight.numel() > max(weight.shape))


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

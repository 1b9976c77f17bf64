"""Decide which modules are the head of a model, from the graph of one loss and the calls that made it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from runner.errors import listed
from runner.freezing.parts.blocks import CONTAINERS
from runner.freezing.patterns import with_parents
from runner.freezing.trial.graph import Ending, by_weight, endings, parameters_reached, reached

PARAMETRIZATIONS = "parametrizations"  # torch's name of the child that computes a parametrized tensor
WRAPPED = "base_layer"  # the usual name of the layer that an adapter wraps


@dataclass(frozen=True)
class Calls:
    """The calls of a model's modules in one forward pass; names are those of `named_modules`.

    Attributes:
        order: {name of a module: the number of its last call}.
        fed_by: {name of a module: the nodes of the autograd graph that made its inputs}.
    """

    order: dict[str, int] = field(default_factory=dict)
    fed_by: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Heads:
    """The names of the modules, or parameters, that are the head, or the `problem` why none is known, a clause."""

    names: tuple[str, ...] = ()
    problem: str = ""


def find_heads(model: nn.Module, calls: Calls, roots: Iterable[Tensor], classes: int | None) -> Heads:
    """Return the head of a model: the layers at which the paths back from the roots, which make the loss, end first.

    A layer that another one of them depends on is left out. No head is known if no path ends at a weight, if one ends where
    the graph hides what it took, if a layer lies in a block like others without one, or if no layer has `classes` outputs
    but one that is never called has.
    """
    modules, roots = dict(model.named_modules(remove_duplicate=False)), list(roots)
    ended = endings(roots, {id(each) for each in model.parameters() if each.dim() > 1})
    if not all(ending.weights for ending in ended):
        return Heads(problem="a reentrant checkpoint hides which layer makes the loss; use_reentrant=False does not")
    layers = _last_layers(model, modules, calls, by_weight(ended))
    if not layers:
        return Heads(problem="the loss depends on no parameter of two or more dimensions")
    independent = _independent(layers, {name: _fed_by(name, model, modules, calls) for name in layers})
    names = tuple(name for name in _all_names(model) if name in independent)
    blocks = _problem_of_blocks(names, modules, parameters_reached(roots), classes)
    problem = blocks or _problem_of_unfed(names, modules, calls, classes)
    return Heads(problem=f"{problem}; the loss is made by {listed(names)}") if problem else Heads(names)


def _all_names(model: nn.Module) -> list[str]:
    """Return the names of all modules and parameters, each parameter after its module."""
    names = []
    for module_name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{module_name}." if module_name else ""
        names += [module_name, *(prefix + name for name, _ in module.named_parameters(recurse=False))]
    return list(dict.fromkeys(names))


def _last_layers(
    model: nn.Module, modules: Mapping[str, nn.Module], calls: Calls, ended: Mapping[int, list[Ending]]
) -> dict[str, list[Ending]]:
    """Return {name of a layer: where paths end at its weights}; a tied weight belongs to the layer that was called last.

    `ended`: {id of a weight: where paths end at it}.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    first_name = {id(module): name for name, module in model.named_modules()}
    layers: dict[str, list[Ending]] = {}
    for weight, ends in ended.items():
        called = {name: calls.order.get(first_name[id(modules[_owner(name)])], -1) for name in names[weight]}
        layers.setdefault(_layer_of(max(called, key=lambda name: called[name]), modules, ended), []).extend(ends)
    return layers


def _owner(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to; of a parametrized tensor's, the module that it is for."""
    parts = parameter.split(".")[:-1]
    return ".".join(parts[: parts.index(PARAMETRIZATIONS)] if PARAMETRIZATIONS in parts else parts)


def _layer_of(parameter: str, modules: Mapping[str, nn.Module], ended: Collection[int]) -> str:
    """Return the name of the layer that a parameter belongs to: a layer with an adapter around it, else its module.

    Where that has modules in it, is the model, or has weights at which no path ends, it is more than a layer: then the
    parameter's own name is returned. `ended`: the ids of the weights at which paths end.
    """
    owner = _owner(parameter)
    adapted = [name for name in (*reversed(_around(owner)), owner) if name and _is_adapted(modules[name], ended)]
    children = {name for name, _ in modules[owner].named_children()} - {PARAMETRIZATIONS}
    matrices = [each for each in modules[owner].parameters() if each.dim() > 1 and each.numel() > max(each.shape)]
    is_whole = all(id(each) in ended for each in matrices) or isinstance(modules[owner], nn.RNNBase)
    is_one = owner and not children and is_whole
    return adapted[0] if adapted else owner if is_one else parameter


def _around(name: str) -> list[str]:
    """Return the names of the modules around a module or parameter, the nearest first, without the model."""
    return with_parents(name)[-2:0:-1]


def _is_adapted(module: nn.Module, ended: Collection[int]) -> bool:
    """Return whether a module is one layer with an adapter: it wraps a layer, or adds the product of two thin matrices.

    Then paths end at two of its three matrices: at that of the layer, and at the second of the thin ones.
    """
    if WRAPPED in dict(module.named_children()):
        return True
    matrices = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    if len(matrices) != 3 or any(each.dim() != 2 for each in matrices) or sum(id(each) in ended for each in matrices) != 2:
        return False
    one, other, weight = sorted((each.shape for each in matrices), key=lambda shape: shape.numel())
    products = {(x[0], y[1]) for x, y in ((one, other), (other, one)) if x[1] == y[0] < min(weight)}
    return bool(products & {(weight[0], weight[1]), (weight[1], weight[0])})


def _fed_by(layer: str, model: nn.Module, modules: Mapping[str, nn.Module], calls: Calls) -> list[Any]:
    """Return the nodes that made the inputs of a layer; for a parameter, those of its module."""
    module = modules.get(layer) or modules[_owner(layer)]
    return next((calls.fed_by.get(name, []) for name, each in model.named_modules() if each is module), [])


def _independent(layers: Mapping[str, Sequence[Ending]], fed_by: Mapping[str, Sequence[Any]]) -> set[str]:
    """Return the layers that no other one was computed from; two that were computed from each other stay.

    `layers`: {name: where paths end at its weights}. `fed_by`: {name: the nodes that made its inputs}. The paths may end at
    a penalty on a weight, which no layer was computed from; then the weight itself tells.
    """
    layer_of = {ending.node: name for name, ends in layers.items() for ending in ends}
    for name, ends in layers.items():
        if not any(ending.others for ending in ends):
            layer_of |= {get_gradient_edge(weight).node: name for ending in ends for weight in ending.weights}
    uses = {}
    for name, ends in layers.items():
        starts = [node for ending in ends if not ending.is_term for node in (*ending.others, *fed_by[name])]
        uses[name] = {layer_of[node] for node in reached(starts, layer_of)}
    return {name for name in layers if not any(name in uses[other] and other not in uses[name] for other in layers)}


def _problem_of_blocks(
    names: Sequence[str], modules: Mapping[str, nn.Module], reached: Collection[int], classes: int | None
) -> str:
    """Return a clause if a layer lies in a block that stands beside others of its class, with no such layer in it; else "".

    A block is any module around a layer that is no container and not the model; containers do not separate it from what
    stands beside it. What the loss does not reach, such as a copy kept for later, is no other block; neither is what has no
    layer of `classes` outputs, if this layer has. `reached`: the ids of the parameters that the loss reaches.
    """
    holders = {id(modules[around]) for name in names for around in _around(name)}
    beside: dict[tuple[str, type], list[str]] = {}
    for name, module in modules.items():
        if id(module) not in holders and any(id(each) in reached for each in module.parameters()):
            beside.setdefault((_parent(name, modules), type(module)), []).append(name)
    for name in names:
        for block in _around(name):
            others = beside.get((_parent(block, modules), type(modules[block])), [])
            if classes is not None and name in modules and _outputs(modules[name]) == classes:
                others = [other for other in others if classes in map(_outputs, modules[other].modules())]
            if others and not isinstance(modules[block], CONTAINERS):
                kind = type(modules[block]).__name__
                return f"the head is not clear: {name} is in {block}, a {kind} like {listed(others, most=3)}"
    return ""


def _parent(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the name of the nearest module around another that is no container; "" for the model."""
    return next((each for each in _around(name) if not isinstance(modules[each], CONTAINERS)), "")


def _problem_of_unfed(names: Sequence[str], modules: Mapping[str, nn.Module], calls: Calls, classes: int | None) -> str:
    """Return a clause if none of the layers has `classes` outputs, but one that was never called has; else ""."""
    sizes = {name: _outputs(modules[name]) for name in names if name in modules}
    unfed = [name for name, each in modules.items() if name not in calls.order and _outputs(each) == classes]
    if classes is None or not sizes or classes in sizes.values() or not unfed:
        return ""
    return f"{listed(unfed, most=3)} has {classes} outputs, but nothing feeds it"


def _outputs(module: nn.Module) -> int | None:
    """Return the number of outputs of a layer, or None if it does not say."""
    return getattr(module, "out_features", getattr(module, "out_channels", None))

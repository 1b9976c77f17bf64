"""Decide which modules are the head of a model, from the graph of one loss and the calls that made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from runner.errors import listed
from runner.freezing.trial.graph import Ending, by_weight, endings, reached

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
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

    A layer that another one of them depends on is left out. No head is known if no path ends at a weight, if a layer lies in
    a block like others without one, or if no layer has `classes` outputs but a layer that is never called has.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = _last_layers(model, modules, calls, roots)
    if not layers:
        return Heads(problem="the loss depends on no parameter of two or more dimensions")
    independent = _independent(layers, {name: _fed_by(name, model, modules, calls) for name in layers})
    names = tuple(name for name in _all_names(model) if name in independent)
    problem = _problem_of_blocks(names, modules, calls, classes) or _problem_of_unfed(names, modules, calls, classes)
    return Heads(problem=f"{problem}; the loss is made by {listed(names)}") if problem else Heads(names)


def _all_names(model: nn.Module) -> list[str]:
    """Return the names of all modules and parameters, each parameter after its module."""
    names = []
    for module_name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{module_name}." if module_name else ""
        names += [module_name, *(prefix + name for name, _ in module.named_parameters(recurse=False))]
    return list(dict.fromkeys(names))


def _last_layers(
    model: nn.Module, modules: Mapping[str, nn.Module], calls: Calls, roots: Iterable[Tensor]
) -> dict[str, list[Ending]]:
    """Return {name of a layer: where paths end at its weights}; a tied weight belongs to the layer that was called last."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1:
            names.setdefault(id(parameter), []).append(name)
    first_name = {id(module): name for name, module in model.named_modules()}
    layers: dict[str, list[Ending]] = {}
    for weight, ends in by_weight(endings(roots, names)).items():
        called = {name: calls.order.get(first_name[id(modules[_owner(name)])], -1) for name in names[weight]}
        layers.setdefault(_layer_of(max(called, key=lambda name: called[name]), modules), []).extend(ends)
    return layers


def _owner(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to; of a parametrized tensor's, the module that it is for."""
    parts = parameter.split(".")[:-1]
    return ".".join(parts[: parts.index(PARAMETRIZATIONS)] if PARAMETRIZATIONS in parts else parts)


def _layer_of(parameter: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the name of the layer that a parameter belongs to: a layer with an adapter around it, else its module.

    Where that has modules in it, or is the model, it is more than a layer: then the parameter's own name is returned.
    """
    owner = _owner(parameter)
    adapted = [name for name in (*reversed(_around(owner)), owner) if name and _is_adapted(modules[name])]
    children = {name for name, _ in modules[owner].named_children()} - {PARAMETRIZATIONS}
    return adapted[0] if adapted else parameter if children or not owner else owner


def _around(name: str) -> list[str]:
    """Return the names of the modules around a module or parameter, the nearest first, without the model."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _is_adapted(module: nn.Module) -> bool:
    """Return whether a module is one layer with an adapter: it wraps a layer, or adds the product of two thin matrices."""
    if WRAPPED in dict(module.named_children()):
        return True
    shapes = [parameter.shape for parameter in module.parameters() if parameter.dim() > 1]
    if len(shapes) != 3 or any(len(shape) != 2 for shape in shapes):
        return False
    one, other, weight = sorted(shapes, key=lambda shape: shape.numel())
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
        starts = [*fed_by[name], *(node for ending in ends for node in ending.others)]
        uses[name] = {layer_of[node] for node in reached(starts, layer_of)}
    return {name for name in layers if not any(name in uses[other] and other not in uses[name] for other in layers)}


def _problem_of_blocks(names: Sequence[str], modules: Mapping[str, nn.Module], calls: Calls, classes: int | None) -> str:
    """Return a clause if a layer lies in a block whose class also stands elsewhere, with no such layer in it; else "".

    The block of a layer is the nearest module around it that is no container and not the model. A layer with `classes`
    outputs is the head wherever it lies, and what is never called, such as a copy kept for later, is no other block.
    """
    holders = {id(modules[around]) for name in names for around in _around(name)}
    for name in names:
        if classes is not None and name in modules and _outputs(modules[name]) == classes:
            continue
        block = next((each for each in _around(name) if not isinstance(modules[each], CONTAINERS)), "")
        kind = type(modules[block])
        alike = [other for other, each in modules.items() if type(each) is kind and id(each) not in holders]
        others = [other for other in alike if other in calls.order]
        if block and others:
            return f"there is no head: {name} is in {block}, a {kind.__name__} like {listed(others, most=3)}"
    return ""


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

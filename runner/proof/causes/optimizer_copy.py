"""Copy an optimizer with its parameters, gradients and state, and step the copy."""

from __future__ import annotations

import builtins
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from inspect import Parameter, signature
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.shards import is_dtensor
from runner.tensors import tensors_in


def copy_optimizer(optimizer: Optimizer) -> tuple[Optimizer, dict[int, Tensor]]:
    """Copy an optimizer with its parameters, gradients and state, without hooks.

    Returns (copy of the optimizer, {id(original parameter): copy of the parameter}). Unlike `copy.deepcopy`, this keeps
    `.grad`. It also copies all other attributes, such as the list in which LBFGS keeps its parameters. Raises TypeError if
    an attribute is a function that may refer to the original, because a copied function would still act on it.
    """
    memo: dict[int, Any] = {}
    parameters = stepped_tensors(optimizer)
    for parameter in parameters:
        parameter_copy = _copy_dtensor(parameter) if is_dtensor(parameter) else copy.deepcopy(parameter)
        parameter_copy.grad = None if parameter.grad is None else parameter.grad.detach().clone()
        memo[id(parameter)] = parameter_copy
    copy_of = {id(parameter): memo[id(parameter)] for parameter in parameters}
    originals = with_inner_optimizers(optimizer)
    memo.update({id(original): object.__new__(type(original)) for original in originals})
    if any(map(is_dtensor, parameters)):
        state = [tensor for tensor in tensors_in(list(map(vars, originals))) if is_dtensor(tensor)]
        memo.update({id(tensor): _copy_dtensor(tensor) for tensor in state if id(tensor) not in memo})
    for original in originals:
        _copy_attributes(memo[id(original)], original, memo)
    return memo[id(optimizer)], copy_of


def _copy_dtensor(tensor: Tensor) -> Tensor:
    """Return a copy of a DTensor with its attributes; `copy.deepcopy` raises, for a DTensor has no memory of its own."""
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, tensor.requires_grad)
    for name in vars(tensor).keys() - vars(copied).keys():
        setattr(copied, name, getattr(tensor, name))
    return copied


def with_inner_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Return a list of the optimizer and all optimizers that it wraps, directly or through another one.

    An optimizer wraps those that it has in an attribute, alone or in a list, tuple or dict.
    """
    found = [optimizer]
    for outer in found:  # the list grows during the loop
        inner = [item for value in vars(outer).values() for item in items_of(value) if isinstance(item, Optimizer)]
        found += [item for item in inner if not any(item is other for other in found)]
    return found


def items_of(value: Any) -> Iterable[Any]:
    """Return the values of a dict, or the items of a list or tuple; for any other object, a tuple with only that object."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)


def stepped_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return the tensors that an optimizer may update: those in its parameter groups, and in lists among its attributes.

    LBFGS has such a list. The tensors of the optimizers that the given one wraps are included. Each tensor is returned once.
    """
    lists = []
    for each in with_inner_optimizers(optimizer):
        lists += [group["params"] for group in each.param_groups]
        lists += [value for value in vars(each).values() if isinstance(value, list)]
    return list({id(item): item for items in lists for item in items if isinstance(item, Tensor)}.values())


def _copy_attributes(target: Optimizer, optimizer: Optimizer, memo: dict[int, Any]) -> None:
    """Copy the attributes of `optimizer` to `target`, without hooks.

    `memo`: {id(original): its copy}, the argument of that name of `copy.deepcopy`. Raises TypeError if an attribute is a
    function that may refer to the real optimizer.
    """
    # A scheduler sets `optimizer.step` to a function that is bound to the real optimizer.
    attributes = {name: value for name, value in vars(optimizer).items() if name != "step" and not name.endswith("_hooks")}
    for name, value in attributes.items():
        is_own_method = isinstance(value, MethodType) and id(value.__self__) in memo
        is_function = isinstance(value, (FunctionType, MethodType, BuiltinFunctionType, partial))
        if is_function and not is_own_method and not _is_pure(value):
            raise TypeError(f"its {name} is a function, which would act on the real optimizer")
    vars(target).update(copy.deepcopy(attributes, memo))
    for value in vars(target).values():
        if isinstance(value, dict):  # some optimizers use ids of tensors as keys: replace them by the ids of the copies
            for key in [key for key in value if isinstance(key, int) and isinstance(memo.get(key), Tensor)]:
                value[id(memo[key])] = value.pop(key)
    vars(target).update({name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")})


def _is_pure(value: Any, seen: tuple[Any, ...] = ()) -> bool:
    """Return whether a function, as far as its code tells, refers to nothing but its arguments, constants and modules.

    Searched are its closure, its defaults, and every global name and attribute of a module that its code may mean. `seen`:
    the functions that are being searched, which may call each other.
    """
    if any(value is each for each in seen):
        return True
    if isinstance(value, tuple):
        return all(_is_pure(each, seen) for each in value)
    if isinstance(value, BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, (ModuleType, type))
    if not isinstance(value, FunctionType):
        return value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype))
    try:
        reached = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # a variable that has no value yet
        return False
    reached += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
    names = _names_in(value.__code__)
    known = {**vars(builtins), **value.__globals__}
    found = [known[name] for name in names if name in known]
    for each in found:  # the list grows during the loop: a module may hold another one
        if isinstance(each, ModuleType):
            members = [vars(each)[name] for name in names if name in vars(each)]
            found += [member for member in members if not any(member is other for other in found)]
    reached += [each for each in found if not isinstance(each, ModuleType) and not _is_builtin_class(each)]
    return all(_is_pure(each, (*seen, value)) for each in reached)


def _is_builtin_class(value: Any) -> bool:
    """Return whether a value is a class of Python or torch itself; such a class holds no optimizer."""
    return isinstance(value, type) and value.__module__ in ("builtins", "torch")


def _names_in(code: CodeType) -> set[str]:
    """Return the names of globals and attributes in the code of a function, and of the functions inside it."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return {*code.co_names, *(name for each in inner for name in _names_in(each))}


def requires_closure(optimizer: Optimizer) -> bool:
    """Return whether a step must be given a closure, which it may call several times, as with LBFGS."""
    argument = signature(type(optimizer).step).parameters.get("closure")
    return argument is not None and argument.default is Parameter.empty


def skips(optimizer: Optimizer, tensor: Tensor) -> bool:
    """Return whether a step is known to leave a tensor as it is, as those of torch do without a gradient, except LBFGS."""
    is_of_torch = type(optimizer).__module__.split(".")[:2] == ["torch", "optim"]
    return tensor.grad is None and is_of_torch and not requires_closure(optimizer)


def step_copy(optimizer: Optimizer, with_closure: bool = False) -> None:
    """Step a copied optimizer with its current gradients, without calling hooks.

    `with_closure`: call `step` with a closure. This is always done if `step` requires one. The closure restores the current
    gradients and returns a linear approximation of the loss, so that a line search sees the loss decrease.
    """
    class_step: Any = type(optimizer).step
    if getattr(class_step, "hooked", False):  # torch's wrapper would call the hooks registered for all optimizers
        class_step = class_step.__wrapped__
    if requires_closure(optimizer) or (with_closure and "closure" in signature(class_step).parameters):
        class_step(optimizer, closure=_first_order_closure(optimizer))
    else:
        class_step(optimizer)


def _first_order_closure(optimizer: Optimizer) -> Callable[[], Tensor]:
    """Return a closure to give to `step`; the closure returns a linear approximation of the loss.

    The closure restores the gradients that the parameters have now, when it is made. It returns the sum over all parameters
    of gradient * (parameter - its value now).
    """
    starts = [(p, p.detach().clone(), p.grad.clone()) for p in stepped_tensors(optimizer) if p.grad is not None]

    @torch.no_grad()
    def closure(*args: Any, **kwargs: Any) -> Tensor:
        for parameter, _, gradient in starts:
            parameter.grad = gradient.clone()  # some optimizers clear it during the step (SAM)
        terms = [(gradient * (parameter - start)).sum() for parameter, start, gradient in starts]
        return torch.stack([term.float() for term in terms]).sum() if terms else torch.zeros(())

    return closure

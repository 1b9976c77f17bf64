"""What an operator returns for outlines: found once for arguments of the same form, and then remembered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from runner.cost.operators.formulas import operands
from runner.cost.operators.layers import RULES
from runner.cost.operators.outline import CPU, Form, Memory, NotOutlinedError, Outline, form, form_of, is_plain

MOST_REMEMBERED = 2**15
WITH_KERNELS = frozenset(  # operators whose kernels for the meta device give what fake tensors on the CPU give
    f"aten::{name}"
    for name in (
        *("add", "add_", "sub", "mul", "mul_", "div", "neg", "relu", "relu_", "threshold_backward", "sigmoid", "tanh"),
        *("mm", "bmm", "addmm", "t", "transpose", "permute", "_unsafe_view", "expand", "unsqueeze", "squeeze"),
        *("select", "slice", "detach", "cat", "mean", "sum", "max_pool2d_with_indices", "max_pool2d_with_indices_backward"),
        *("_log_softmax", "_log_softmax_backward_data", "_softmax", "_softmax_backward_data"),
        *("nll_loss_forward", "nll_loss_backward", "gelu", "gelu_backward", "silu", "silu_backward", "fill_", "zero_"),
        *("hardtanh_", "hardtanh_backward", "ones_like", "zeros_like", "empty_like", "empty", "zeros", "ones", "full"),
    )
)

aten = torch.ops.aten
RESHAPED = (aten.as_strided_.default, aten.t_.default, aten.transpose_.default, aten.unsqueeze_.default, aten.squeeze_.dim)


class Same(NamedTuple):
    """The result is one of the tensors that were given: that of this number."""

    number: int


class View(NamedTuple):
    """The result is a view of one of the tensors that were given."""

    number: int
    form: Form


class New(NamedTuple):
    """The result is a new tensor, whose memory takes so many bytes."""

    form: Form
    size: int


class Again(NamedTuple):
    """The result is an earlier one of the results: that of this number."""

    number: int


Recipe = Any  # a Same, View, New or None, or a list or tuple of them and of Again
_remembered: dict[Any, Recipe] = {}


def execute(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operator returns for outlines; other tensors among its arguments are taken as outlines too.

    Raises NotOutlinedError, or what torch raises, if that depends on values, if a tensor with values would be changed, or if
    it is not known.
    """
    if func in RESHAPED and type(args[0]) is Outline:
        return _reshaped(func, args)
    tensors: list[Tensor] = []
    given = _signature(args, tensors), _signature(tuple(kwargs.items()), tensors) if kwargs else ()
    key = func, given, torch.get_default_dtype(), torch.backends.mkldnn.enabled
    try:
        recipe = _remembered.get(key, NotImplemented)
    except TypeError:  # an argument that cannot be hashed
        raise NotOutlinedError(str(func)) from None
    if recipe is NotImplemented:
        recipe = _find(func, args, kwargs, tensors)
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        _remembered[key] = recipe
    return _build(recipe, tensors)


def _reshaped(func: Any, args: Any) -> Outline:
    """Give an outline the form that an operator such as `as_strided_` gives it, and return it."""
    outline: Outline = args[0]
    with torch._C._DisableTorchDispatch():  # which sets sizes and strides, as it does on any tensor
        func(*args)
    outline.form = form(tuple(outline.shape), outline.stride(), int(outline.storage_offset()), outline.dtype)
    return outline


def _signature(value: Any, tensors: list[Tensor]) -> Any:
    """Return what of an argument decides about the results, and append its tensors to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        if type(value) is Outline:
            return value.form
        if type(value) is not Tensor or value.layout is not torch.strided or value.device != CPU:
            raise NotOutlinedError(f"a {type(value).__name__} on {value.device}")
        return form_of(value), "with values"
    if isinstance(value, (list, tuple)):
        return tuple([_signature(item, tensors) for item in value])
    return (type(value), value) if isinstance(value, (bool, int, float, complex)) else value


def _build(recipe: Recipe, tensors: Sequence[Tensor]) -> Any:
    """Return the results that a recipe describes."""
    kind = type(recipe)
    if kind is New:
        return Outline.make(recipe.form, Memory(recipe.size))
    if kind is View:
        return Outline.make(recipe.form, tensors[recipe.number].memory)
    if kind is Same:
        return tensors[recipe.number]
    if recipe is None:
        return None
    results: list[Any] = []
    for each in recipe:
        results.append(results[each.number] if type(each) is Again else _build(each, tensors))
    return kind(results)


def _find(func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Recipe:
    """Find out what an operator returns: by a rule, by torch's kernels for shapes, or by torch's fake tensors."""
    if any(type(each) is not Outline for each in _written(func, args, kwargs)):
        raise NotOutlinedError(f"{func} changes a tensor that has values")
    forms = [form_of(each) for each in tensors]
    if (rule := RULES.get(func)) is not None and not kwargs:
        found = rule(*_replaced(args, iter(forms)))
        if found is not NotImplemented:
            return _new(found)
    by_kernels = func.name().partition(".")[0] in WITH_KERNELS and kwargs.get("device", CPU) == CPU
    if by_kernels and "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("meta")}
    with nullcontext() if by_kernels else _fake_mode():
        given = [each.tensor("meta" if by_kernels else CPU) for each in forms]
        places = iter(given)
        results = func(*_replaced(args, places), **dict(_replaced(tuple(kwargs.items()), places)))
        if any(form_of(each) is not before for each, before in zip(given, forms, strict=True)):
            raise NotOutlinedError(f"{func} changes the form of a tensor")
        return _recipe(func, results, given, tensors)


def _new(forms: Any) -> Recipe:
    """Return the recipe for new tensors of these forms."""
    if isinstance(forms, tuple):
        return tuple([_new(each) for each in forms])
    return forms and New(forms, prod(forms.size) * forms.dtype.itemsize)


def _recipe(func: Any, result: Any, given: Sequence[Tensor], tensors: Sequence[Tensor]) -> Recipe:
    """Return the recipe for a result, or several, of an operator that was called with the tensors `given`."""
    if isinstance(result, (list, tuple)):
        recipes, first = list[Recipe](), dict[int, int]()  # the first result in each new memory
        for number, each in enumerate(result):
            recipes.append(_recipe(func, each, given, tensors))
            if type(recipes[-1]) is New and (before := first.setdefault(each.untyped_storage()._cdata, number)) != number:
                if result[before] is not each:
                    raise NotOutlinedError(f"{func} returns new tensors that share memory")
                recipes[-1] = Again(before)
        return tuple(recipes) if isinstance(result, tuple) else recipes
    if result is None:
        return None
    if not isinstance(result, Tensor) or not is_plain(result):
        raise NotOutlinedError(f"{func} returns a {type(result).__name__}")
    memory = result.untyped_storage()
    for number, (each, tensor) in enumerate(zip(given, tensors, strict=True)):
        if memory._cdata == each.untyped_storage()._cdata:
            if type(tensor) is Outline:
                return Same(number) if result is each else View(number, form_of(result))
            if func is not aten.lift_fresh.default:  # of a constant in the model's code
                raise NotOutlinedError(f"{func} returns a view of a tensor that has values")
    return New(form_of(result), memory.nbytes())


@lru_cache(maxsize=1)
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode()


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Yield the tensors that an operator changes."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from operands(value)


def _replaced(value: Any, places: Iterator[Any]) -> Any:
    """Return an operator's arguments with the next one of `places` in place of each tensor."""
    if isinstance(value, Tensor):
        return next(places)
    if isinstance(value, (list, tuple)):
        return type(value)([_replaced(item, places) for item in value])
    return value


Outline.execute = staticmethod(execute)

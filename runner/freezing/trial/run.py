"""Try a model once on a real batch, and see which of its modules make what the loss is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import signature
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from runner.freezing.parts.evidence import Trial
from runner.freezing.trial.candidates import Calls, find_heads
from runner.kept_state import state_kept
from runner.seeding import preserve_random_state, preserve_settings
from runner.tensors import map_tensors, tensors_in
from runner.tracing import tracing

PICTURE = re.compile("pixel|image|picture", re.I)  # in the names of fields that hold pictures


def try_model(
    model: nn.Module,
    batch: Any,
    task: Callable[[nn.Module, Any], Any] | None = None,
    *,
    classes: int | None = None,
    copies: Mapping[str, Tensor] | None = None,
) -> Trial:
    """Run a task once in train mode, with gradients for all parameters, and return what that showed of the model.

    `batch`: a batch on the model's device. `task`: a function (model, batch) -> loss; without one, the loss is made of all
    tensors that the model returns. `classes`: the number of outputs of the head, where it is known. `copies`: those of the
    tensors as they are now, if there are any. Afterwards parameters, buffers, flags, modes and random states are what they
    were. Raises what the model or the task raises.
    """
    batch = map_tensors(batch, Tensor.clone)  # the model may write to it
    calls, takes, numbers = Calls(), dict[str, set[int]](), count()

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = tensors_in((args, kwargs))
        calls.order[name] = next(numbers)
        calls.fed_by.setdefault(name, []).extend(each.grad_fn for each in tensors if each.grad_fn is not None)
        takes.setdefault(name, set()).update(map(_place, tensors))

    with preserve_settings(), preserve_random_state(), state_kept(model, copies), torch.enable_grad():
        for module in model.modules():  # a model's own `train` may do more, such as merge an adapter into its layer
            module.training = True
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        with tracing(model, begin=begin):
            result = call(model, batch) if task is None else task(model, batch)
        heads = find_heads(model, calls, tensors_in(result), classes)
    pictures, others = _places_of(batch)
    deeper = {name: places for name, places in takes.items() if name}  # the model itself may only pass a label on to a loss
    return Trial(
        heads=heads.names,
        problem=heads.problem,
        takes_picture=tuple(name for name, places in takes.items() if places & pictures),
        takes_other=tuple(name for name, places in deeper.items() if places & others),
    )


def call(model: nn.Module, batch: Any) -> Any:
    """Return what a model returns for a batch: a mapping is its keyword arguments, a sequence its positional ones.

    Of a sequence that is longer than what the model takes, such as (input, target), the first item is the input.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if not isinstance(batch, (tuple, list)):
        return model(batch)
    try:
        signature(model.forward).bind(*batch)
    except TypeError:
        return model(batch[0])
    return model(*batch)


def _places_of(batch: Any) -> tuple[set[int], set[int]]:
    """Return where the pictures of a batch lie in memory, and where its other tensors lie.

    Pictures are real numbers of four or more dimensions, the batch included, and the fields that are named after them.
    """
    named = {id(each) for key, value in _fields(batch) if PICTURE.search(key) for each in tensors_in(value)}
    tensors = tensors_in(batch)
    pictures = [each for each in tensors if id(each) in named or (each.is_floating_point() and each.dim() >= 4)]
    places = set(map(_place, pictures))
    return places, {_place(each) for each in tensors} - places


def _fields(value: Any) -> list[tuple[str, Any]]:
    """Return the pairs (name of a field, value) of the mappings in a nested value."""
    if isinstance(value, Mapping):
        return [(str(key), each) for key, each in value.items()]
    return [field for each in value for field in _fields(each)] if isinstance(value, (tuple, list)) else []


def _place(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins, which a view shares; its id if it has no memory, as on the meta device."""
    return tensor.untyped_storage().data_ptr() or id(tensor)

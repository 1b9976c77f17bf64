"""Run a model and leave no trace: modes, the bits of all tensors, and what an optimizer or a scheduler holds come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from runner.tensors import copy_of, names_and_tensors, same_bits

ATOMS = (type, ModuleType, FunctionType, BuiltinFunctionType, str, bytes, int, float, complex)
NOT_LOOKED_INTO = (*ATOMS, Dataset, DataLoader)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[list[str]]:
    """Put every module in eval mode in the block; on leaving, give back what `state_kept` does.

    The modules' flags are set directly, because a model's own `eval` and `train` may do more, such as merge an adapter into
    its layer. Yields what `state_kept` yields.
    """
    with state_kept(model) as written:
        for module in model.modules():
            module.training = False
        yield written


@contextmanager
def state_kept(model: nn.Module, copies: Mapping[str, Tensor] | None = None) -> Iterator[list[str]]:
    """On leaving the block, give back modes, parameters, buffers, gradients and `requires_grad` flags.

    `copies`: {name: copy} of tensors as they are now, so that they need not be copied again. Yields a list; on leaving, it
    is filled with the names of the tensors that the block has written, replaced, added or removed.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    registries = [(registry, dict(registry.items())) for module in model.modules() for registry in _registries(module)]
    standing = dict(zip(*names_and_tensors(model), strict=True))
    # By id, so that a tied tensor is copied once. The detached tensor has the same memory, also after `p.data = other`.
    copied = {id(standing[name]): copy for name, copy in (copies or {}).items() if name in standing}
    kept = {id(t): (t, t.detach(), copied[id(t)] if id(t) in copied else copy_of(t)) for t in standing.values()}
    written: list[str] = []
    try:
        yield written
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        now = dict(zip(*names_and_tensors(model), strict=True))
        for registry, before in registries:
            _restore_registry(registry, before)
        changed = {key for key, values in kept.items() if _restore_values(*values)}
        written += [name for name, each in standing.items() if id(each) in changed or now.get(name) is not each]
        written += [name for name in now if name not in standing]


def _registries(module: nn.Module) -> tuple[Any, Any]:
    """Return the two mappings in which a module registers its parameters and its buffers."""
    return module._parameters, module._buffers


def _restore_registry(registry: Any, before: dict[str, Any]) -> None:
    """Give a module the parameters or buffers back that it had; the registries of a ScriptModule are no dicts."""
    for key in [key for key, _ in registry.items() if key not in before]:
        del registry[key]
    now = dict(registry.items())
    for key, tensor in before.items():
        if key not in now or now[key] is not tensor:
            registry[key] = tensor


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return where and how the values of a tensor lie in memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _restore_values(tensor: Tensor, memory: Tensor, copied: Tensor) -> bool:
    """Give a tensor its memory and its bits back, and return whether they had changed."""
    is_moved = _layout(tensor) != _layout(memory)
    if is_moved:
        tensor.data = memory
    is_written = not same_bits(copied, tensor)
    if is_written:
        tensor.data.copy_(copied)
    return is_written or is_moved


@contextmanager
def gradients_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """On leaving the block, give these tensors the gradients that they have now; in the block they have copies of them."""
    gradients = [(tensor, tensor.grad) for tensor in tensors]
    try:
        for tensor, gradient in gradients:
            tensor.grad = None if gradient is None else gradient.detach().clone()
        yield
    finally:
        for tensor, gradient in gradients:
            tensor.grad = gradient


@contextmanager
def contents_kept(*objects: Any, besides: Iterable[Any] = ()) -> Iterator[None]:
    """On leaving the block, give objects such as an optimizer or a scheduler back what they hold now.

    That is every attribute and every entry of a dict, list, set or deque in them, and in the objects in these, and so on;
    the bits of each tensor, and the state of each generator of torch. Each object and tensor remains the same one. Not
    looked into are `besides`, datasets and their loaders (which may be large), classes, functions (as far as they are no
    methods) and what has no `__dict__`.
    """
    seen = {id(each): each for each in besides}  # the objects too, so that no id is used again
    with ExitStack() as undo:
        waiting = deque(objects)
        while waiting:
            value = waiting.popleft()
            if id(value) not in seen:
                seen[id(value)] = value
                waiting += _keep(value, undo.callback)
        yield


def _keep(value: Any, at_the_end: Callable[[Callable[[], Any]], Any]) -> Iterable[Any]:
    """Call `at_the_end` with what gives an object its contents back, and return the objects in it."""
    if isinstance(value, Tensor):
        at_the_end(partial(_restore_values, value, value.detach(), copy_of(value)))
        return ()
    if isinstance(value, torch.Generator):
        at_the_end(partial(value.set_state, value.get_state()))
        return ()
    if isinstance(value, NOT_LOOKED_INTO):
        return ()
    if isinstance(value, (dict, list, set, deque)):
        contents = list(value.items() if isinstance(value, dict) else value)
        at_the_end(partial(_restore_contents, value, contents))
        held = [each for pair in contents for each in pair] if isinstance(value, dict) else contents
    else:
        held = list(value) if isinstance(value, (tuple, frozenset)) else []
    if isinstance(value, MethodType):
        return [value.__self__]
    attributes = getattr(value, "__dict__", None)
    return [*held, attributes] if isinstance(attributes, dict) else held


def _restore_contents(container: Any, contents: list[Any]) -> None:
    """Give a dict, list, set or deque its contents back, in their order, unless it still has the same objects."""
    now = list(container.items() if isinstance(container, dict) else container)
    if isinstance(container, dict):
        is_same = [(id(key), id(each)) for key, each in now] == [(id(key), id(each)) for key, each in contents]
    else:
        is_same = list(map(id, now)) == list(map(id, contents))
    if not is_same:
        container.clear()
        container.extend(contents) if isinstance(container, (list, deque)) else container.update(contents)

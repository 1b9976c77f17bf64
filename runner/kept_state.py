"""Run a model and leave no trace: each module's mode, and the bits of every parameter and buffer, come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from runner.tensors import copy_of, names_and_tensors, same_bits


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

"""The tensors of a model: every parameter and buffer once, with all its names, in the order of registration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from runner.contract import Kind
from runner.errors import ConfigError


@dataclass
class Entry:
    """One tensor of a model. `name` is the first it was registered under, `aliases` are the others (tied tensors)."""

    name: str
    kind: Kind
    owner: str
    module_type: str
    tensor: Tensor
    aliases: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [self.name, *self.aliases]


def entries(model: nn.Module) -> dict[str, Entry]:
    """Every parameter and buffer by name: each module in `named_modules()` order, its parameters, then its buffers.

    Non-persistent buffers are included. A tensor is told by identity, never by value: one that is registered under
    several names is one entry.
    """
    found: dict[int, Entry] = {}
    for owner, module in model.named_modules(remove_duplicate=False):
        own = [("parameter", name, value) for name, value in module._parameters.items()]
        own += [("buffer", name, value) for name, value in module._buffers.items()]
        for kind, name, value in own:
            if value is None:
                continue
            full = f"{owner}.{name}" if owner else name
            if id(value) in found:
                found[id(value)].aliases.append(full)
            else:
                found[id(value)] = Entry(name=full, kind=kind, owner=owner, module_type=type(module).__name__, tensor=value)  # type: ignore[arg-type]
    return {entry.name: entry for entry in found.values()}


def now(found: Mapping[str, Entry]) -> Callable[[Entry], Tensor | None]:
    """Where an entry of before is among the entries found now: the same tensor under any name, else one of its name."""
    here = {id(entry.tensor) for entry in found.values()}

    def resolve(was: Entry) -> Tensor | None:
        if id(was.tensor) in here:
            return was.tensor
        return found[was.name].tensor if was.name in found else None

    return resolve


def refuse_unless_dense(model: nn.Module) -> None:
    """Raise ConfigError unless there is one process, and every tensor is dense, whole and holds values."""
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ConfigError("model: torch.distributed runs several processes; one process and dense tensors are needed")
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise ConfigError(f"model: {name} is a quantised {type(module).__name__}; only dense tensors can be watched")
    for name, entry in entries(model).items():
        tensor = entry.tensor
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            what = "not initialised yet (a lazy module); run one batch through the model in the function that builds it"
        elif tensor.is_meta:
            what = "on the meta device and holds no values; build the model on a real one"
        elif tensor.is_nested:
            what = "nested; only dense tensors can be watched bit by bit"
        elif tensor.layout is not torch.strided or tensor.is_quantized:
            what = f"{'quantised' if tensor.is_quantized else 'sparse'}; only dense tensors can be watched bit by bit"
        elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            what = f"a {type(tensor).__name__} (sharded or quantised); one process and dense tensors are needed"
        else:
            continue
        raise ConfigError(f"model: {name} is {what}")


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of it was given to torch.compile: hooks on modules would have it compiled once more."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of any dtype hold the same bits; -0.0 and 0.0 differ, equal NaN bits do not."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return equal_bits(flat(one, like=one), flat(other.to(one.device), like=one))  # a model may move to another device


def equal_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two contiguous flat tensors of one type and size hold the same bits."""
    left, right = bits(one), bits(other)
    if left.dtype != right.dtype:  # a view that begins off the eight bytes
        left, right = left.clone().view(torch.uint8), right.clone().view(torch.uint8)
    return torch.equal(left, right)


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in the same storage, with bytes from the first to the last element of each in common."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not one.numel() or not other.numel():
        return False
    (begin, end), (start, stop) = _extent(one), _extent(other)
    return begin < stop and start < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return begin, begin + (last + 1) * tensor.element_size()


def flat(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor's elements in the order in which `like` lies in memory, so that a channels_last one is not copied."""
    if not like.is_contiguous():
        tensor = tensor.permute(sorted(range(like.dim()), key=lambda dim: like.stride(dim), reverse=True))
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)


def bits(flat: Tensor) -> Tensor:
    """The bits of a contiguous flat tensor as integers, without a copy."""
    if flat.is_complex():
        flat = torch.view_as_real(flat).view(-1)
    size = flat.element_size()
    eights = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    return flat.view(torch.int64 if eights else _INTEGER_OF_SIZE[size])  # eight bytes at a time compare fastest


_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    """A nested value of the same structure, with `change` applied to whatever is no container.

    Containers are those that torch's pytree knows (tuples, lists, dicts, named tuples, classes that are registered there),
    and mutable mappings of any other class, which are copied with all that they have besides.
    """

    def within(leaf: Any) -> Any:
        if not isinstance(leaf, MutableMapping):
            return change(leaf)
        copied = copy.copy(leaf)
        for key in leaf:
            copied[key] = each_leaf(leaf[key], change)
        return copied

    return tree_map(within, value)


def each_tensor(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A nested value of the same structure, with every tensor in it changed."""
    return each_leaf(value, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def leaves_in(value: Any) -> list[Any]:
    """Whatever is no container in a nested value, in order."""
    found: list[Any] = []
    each_leaf(value, found.append)
    return found


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, in order."""
    return [leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor)]

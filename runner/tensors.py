"""The parameters and buffers of a model, comparison of tensors bit by bit, and mapping over nested values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from runner.contract import TensorKind
from runner.errors import ConfigError


@dataclass
class TensorEntry:
    """One parameter or buffer of a model.

    Attributes:
        name: the first name under which it is registered, such as `layer1.0.weight`.
        owner: the name of the module that it is registered in under `name`; "" for the model itself.
        module_type: the class name of that module.
        aliases: its other names, if it is tied.
    """

    name: str
    kind: TensorKind
    owner: str
    module_type: str
    tensor: Tensor
    aliases: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All its names, the first one first."""
        return [self.name, *self.aliases]


def tensor_entries(model: nn.Module) -> dict[str, TensorEntry]:
    """Return all parameters and buffers by name: module by module as in `named_modules()`, parameters before buffers.

    Non-persistent buffers are included. Tensors are distinguished by identity, not by value: a tensor that is registered
    under several names has one entry.
    """
    by_id: dict[int, TensorEntry] = {}
    for owner, module in model.named_modules(remove_duplicate=False):
        tensors: list[tuple[TensorKind, str, Tensor | None]] = [
            *(("parameter", key, tensor) for key, tensor in module._parameters.items()),
            *(("buffer", key, tensor) for key, tensor in module._buffers.items()),
        ]
        for kind, key, tensor in tensors:
            if tensor is None:
                continue
            name, module_type = f"{owner}.{key}" if owner else key, type(module).__name__
            if id(tensor) in by_id:
                by_id[id(tensor)].aliases.append(name)
            else:
                by_id[id(tensor)] = TensorEntry(name=name, kind=kind, owner=owner, module_type=module_type, tensor=tensor)
    return {entry.name: entry for entry in by_id.values()}


def tensor_resolver(current: Mapping[str, TensorEntry]) -> Callable[[TensorEntry], Tensor | None]:
    """Return a function that finds, for an older entry of the same model, its tensor among the current entries.

    The function returns the tensor of the older entry itself if the model still has it under any name, otherwise the current
    tensor of the same name, otherwise None.
    """
    current_ids = {id(entry.tensor) for entry in current.values()}

    def resolve(entry: TensorEntry) -> Tensor | None:
        if id(entry.tensor) in current_ids:
            return entry.tensor
        return current[entry.name].tensor if entry.name in current else None

    return resolve


def refuse_unless_dense(model: nn.Module) -> None:
    """Raise ConfigError if several processes train the model, or if one of its tensors is not dense or has no values yet."""
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ConfigError("model: torch.distributed runs several processes; use one process and dense tensors")
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise ConfigError(f"model: {name} is a quantised {type(module).__name__}; only dense tensors can be watched")
    for name, entry in tensor_entries(model).items():
        tensor = entry.tensor
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            problem = "not initialised yet (a lazy module); run one batch through the model in the function that builds it"
        elif tensor.is_meta:
            problem = "on the meta device and has no values; build the model on a real device"
        elif tensor.is_nested:
            problem = "nested; only dense tensors can be watched bit by bit"
        elif tensor.layout is not torch.strided or tensor.is_quantized:
            problem = f"{'quantised' if tensor.is_quantized else 'sparse'}; only dense tensors can be watched bit by bit"
        elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            problem = f"a {type(tensor).__name__} (sharded or quantised); use one process and dense tensors"
        else:
            continue
        raise ConfigError(f"model: {name} is {problem}")


def is_compiled(model: nn.Module) -> bool:
    """Return whether torch.compile was applied to the model or any of its modules (module hooks would make it recompile)."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bits; they may be on different devices.

    So -0.0 and 0.0 differ, and NaNs are equal if their bits are.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    other = other.to(one.device)  # a model may be moved to another device
    return same_bits_flat(flattened(one, like=one), flattened(other, like=one))


def same_bits_flat(one: Tensor, other: Tensor) -> bool:
    """Return whether two flat contiguous tensors of the same dtype and size have the same bits."""
    left, right = as_integers(one), as_integers(other)
    if left.dtype != right.dtype:  # one of them is a view that does not begin at a multiple of eight bytes
        left, right = left.clone().view(torch.uint8), right.clone().view(torch.uint8)
    return torch.equal(left, right)


def memory_overlaps(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors use the same storage and the byte ranges from first to last element overlap."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not one.numel() or not other.numel():
        return False
    (begin, end), (other_begin, other_end) = _byte_range(one), _byte_range(other)
    return begin < other_end and other_begin < end


def _byte_range(tensor: Tensor) -> tuple[int, int]:
    """Return where the tensor's elements begin and end in its storage, in bytes."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return begin, begin + (last + 1) * tensor.element_size()


def flattened(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor's elements as a flat contiguous tensor, in the memory order of `like`; copied only if necessary.

    Tensors to compare need the same `like`. A channels_last tensor is not copied if it is its own `like`.
    """
    if not like.is_contiguous():
        tensor = tensor.permute(sorted(range(like.dim()), key=lambda dim: like.stride(dim), reverse=True))
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)


def as_integers(flat: Tensor) -> Tensor:
    """Return a view of a flat contiguous tensor's bits as integers, without a copy."""
    if flat.is_complex():
        flat = torch.view_as_real(flat).view(-1)
    size = flat.element_size()
    fits_int64 = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    return flat.view(torch.int64 if fits_int64 else _INTEGER_OF_SIZE[size])  # int64 compares fastest


_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return a copy of a nested value with `function` applied to each leaf, that is, to everything that is no container.

    Containers are those of torch's pytree (tuples, lists, dicts, named tuples, registered classes), and mutable mappings of
    any other class; of these a shallow copy is filled, so that their other attributes are kept.
    """

    def map_mapping(leaf: Any) -> Any:
        if not isinstance(leaf, MutableMapping):
            return function(leaf)
        copied = copy.copy(leaf)
        for key in leaf:
            copied[key] = map_leaves(leaf[key], function)
        return copied

    return tree_map(map_mapping, value)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return a copy of a nested value with `function` applied to each tensor; other leaves stay as they are."""
    return map_leaves(value, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)


def leaves_in(value: Any) -> list[Any]:
    """Return all leaves of a nested value in order (see `map_leaves`)."""
    leaves: list[Any] = []
    map_leaves(value, leaves.append)
    return leaves


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a nested value, in order."""
    return [leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor)]

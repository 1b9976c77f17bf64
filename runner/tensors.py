"""The parameters and buffers of a model, comparison of tensors bit by bit, and mapping over nested values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from runner.contract import TensorKind
from runner.errors import ConfigError
from runner.shards import local, refuse_several_processes, sharding_of


@dataclass
class TensorEntry:
    """One parameter or buffer of a model.

    Attributes:
        name: its full name, such as `layer1.0.weight`; if it is registered several times, the first one.
        kind: `parameter` or `buffer`.
        owner: the name of the module that contains it, such as `layer1.0`; "" for the model itself.
        module_type: the class name of that module, such as `Linear`.
        tensor: the parameter or buffer itself, not a copy.
        aliases: its other full names, if it is tied (registered in several places).
    """

    name: str
    kind: TensorKind
    owner: str
    module_type: str
    tensor: Tensor
    aliases: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All full names under which it is registered: `name`, then `aliases`."""
        return [self.name, *self.aliases]


def tensor_entries(model: nn.Module) -> dict[str, TensorEntry]:
    """Return {name: TensorEntry} for all parameters and buffers of a model, non-persistent buffers included.

    The order is that of `named_modules()`; in each module, parameters come before buffers. A tensor that is registered under
    several names (the same object) has one entry, under the first name.
    """
    by_id: dict[int, TensorEntry] = {}
    for owner, module, kind, key, tensor in _registered(model):
        name, module_type = f"{owner}.{key}" if owner else key, type(module).__name__
        if id(tensor) in by_id:
            by_id[id(tensor)].aliases.append(name)
        else:
            by_id[id(tensor)] = TensorEntry(name=name, kind=kind, owner=owner, module_type=module_type, tensor=tensor)
    return {entry.name: entry for entry in by_id.values()}


def names_and_tensors(model: nn.Module) -> tuple[list[str], list[Tensor]]:
    """Return (full names, tensors) of all parameters and buffers of a model; a tied tensor occurs once for each name.

    Those of a lazy module are left out until it is initialised.
    """
    registered = [each for each in _registered(model) if not is_lazy(each[-1])]
    names = [f"{owner}.{key}" if owner else key for owner, _, _, key, _ in registered]
    return names, [tensor for *_, tensor in registered]


def _registered(model: nn.Module) -> Iterator[tuple[str, nn.Module, TensorKind, str, Tensor]]:
    """Yield (name of the module, module, kind, key, tensor) for each place where a tensor is registered in a model."""
    for owner, module in model.named_modules(remove_duplicate=False):
        for key, tensor in module._parameters.items():
            if tensor is not None:
                yield owner, module, "parameter", key, tensor
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield owner, module, "buffer", key, buffer


def tensor_resolver(current: Mapping[str, TensorEntry]) -> Callable[[TensorEntry], Tensor | None]:
    """Return a function that takes an earlier TensorEntry of a model and returns the tensor that is now in its place.

    `current`: the result of `tensor_entries(model)` now. If the model still has the entry's tensor under any name, the
    returned function returns this tensor. If not, it returns the tensor that now has the entry's name, or None if the model
    has no tensor of this name.
    """
    current_ids = {id(entry.tensor) for entry in current.values()}

    def resolve(entry: TensorEntry) -> Tensor | None:
        if id(entry.tensor) in current_ids:
            return entry.tensor
        return current[entry.name].tensor if entry.name in current else None

    return resolve


def refuse_unless_dense(model: nn.Module) -> None:
    """Raise ConfigError if several processes run, or if a tensor is a DTensor or its bits cannot be compared."""
    refuse_several_processes(model)
    refuse_unreadable(model)


def refuse_unreadable(model: nn.Module) -> None:
    """Raise ConfigError if a tensor is sparse, nested or without values, or if a layer has packed its quantised weights.

    Of a DTensor, the part that this process holds is looked at.
    """
    for name, module in model.named_modules():
        if any(_is_packed(value) for value in vars(module).values()):
            raise ConfigError(f"model: {name or 'the model'} has packed its quantised weights, whose bits cannot be read")
    for name, entry in tensor_entries(model).items():
        tensor = local(entry.tensor)
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            problem = "not initialised yet (a lazy module); run one batch through the model in the function that builds it"
        elif tensor.is_meta:
            problem = "on the meta device and has no values; build the model on a real device"
        elif tensor.is_nested or tensor.layout is not torch.strided:
            problem = f"{'nested' if tensor.is_nested else 'sparse'}; only dense tensors can be watched bit by bit"
        elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            problem = f"a {type(tensor).__name__} (sharded or quantised); use dense tensors or DTensors"
        else:
            continue
        raise ConfigError(f"model: {name} is {problem}")


def _is_packed(value: object) -> bool:
    """Return whether a value holds the weights of a quantised layer in a form that only torch's own kernels can read."""
    return isinstance(value, torch.ScriptObject) and ".quantized." in value._type().qualified_name()  # type: ignore[attr-defined]


def is_compiled(model: nn.Module) -> bool:
    """Return whether torch.compile was applied to the model or to any module in it."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bits; they may be on different devices.

    Unlike with `torch.equal`, -0.0 and 0.0 differ, and two NaNs with the same bits are the same. A tensor that has no values
    (on the meta device, or because its memory was freed) is the same as no tensor. Of DTensors, which must be sharded alike,
    the parts that this process holds are compared.
    """
    if sharding_of(one) != sharding_of(other):
        return False
    one, other = local(one), local(other)
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    if not has_values(one) or not has_values(other):
        return False
    if one.is_quantized and quantiser_of(one) != quantiser_of(other):
        return False
    other = other.to(one.device)  # a model may be moved to another device
    return same_bits_flat(flattened(one, like=one), flattened(other, like=one))


def same_bits_flat(one: Tensor, other: Tensor) -> bool:
    """Return whether two one-dimensional contiguous tensors have the same bits.

    The two tensors must have the same dtype, size and device; this is not checked.
    """
    left, right = as_integers(one), as_integers(other)
    if left.dtype != right.dtype:  # one of them is a view that does not begin at a multiple of eight bytes
        left, right = left.clone().view(torch.uint8), right.clone().view(torch.uint8)
    return torch.equal(left, right)


def memory_overlaps(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors overlap: they use the same storage, and their ranges of bytes in it overlap.

    The range of a tensor goes from its first to its last element. Two strided views whose elements alternate in memory
    therefore count as overlapping. A tensor without elements overlaps with no tensor.
    """
    one, other = local(one), local(other)
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not one.numel() or not other.numel():
        return False
    (begin, end), (other_begin, other_end) = _byte_range(one), _byte_range(other)
    return begin < other_end and other_begin < end


def _byte_range(tensor: Tensor) -> tuple[int, int]:
    """Return (begin, end): the byte offsets, in the tensor's storage, of its first element and of the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return begin, begin + (last + 1) * tensor.element_size()


def flattened(tensor: Tensor, like: Tensor) -> Tensor:
    """Return all elements of `tensor` as a one-dimensional contiguous tensor; without a copy if that is possible.

    `like` is a tensor of the same shape. The elements are returned in the order that they have in the memory of `like`. To
    compare two tensors element by element, flatten both with the same `like`. If `tensor` and `like` are the same tensor and
    its elements lie in memory without gaps (channels_last too), nothing is copied. A quantised tensor is returned as its
    integers.
    """
    if tensor.is_quantized:
        tensor, like = tensor.int_repr(), like.int_repr()
    if tensor.layout is not torch.strided:
        tensor = like = tensor.to_dense()
    if not like.is_contiguous():
        tensor = tensor.permute(sorted(range(like.dim()), key=lambda dim: like.stride(dim), reverse=True))
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)


def as_integers(flat: Tensor) -> Tensor:
    """Return a view of a one-dimensional contiguous tensor as integers with the same bits.

    If the size of the tensor and its storage offset, both in bytes, are multiples of 8, the dtype is int64, which is
    compared fastest. Otherwise it is that of `element_bits`.
    """
    size = flat.element_size()
    fits_int64 = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    return flat.view(torch.int64) if fits_int64 else element_bits(flat)


def element_bits(flat: Tensor) -> Tensor:
    """Return a view of a one-dimensional contiguous tensor as integers of the size of its elements, with the same bits.

    A complex element counts as two.
    """
    if flat.is_complex():
        flat = torch.view_as_real(flat).view(-1)
    return flat.view(_INTEGER_OF_SIZE[flat.element_size()])


_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def copy_of(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor, without its history; also of a dtype that torch cannot copy, such as `bits8`."""
    try:
        return tensor.detach().clone()
    except NotImplementedError:
        return tensor.detach().view(torch.uint8).clone().view(tensor.dtype)


def has_values(tensor: Tensor) -> bool:
    """Return whether the values of a tensor can be read: it is not on the meta device, and its memory was not freed."""
    tensor = local(tensor)
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return not tensor.is_meta
    there = tensor.untyped_storage().nbytes()
    wanted = (int(tensor.storage_offset()) + tensor.numel()) * tensor.element_size()  # of a tensor without gaps
    return wanted <= there or _byte_range(tensor)[1] <= there


def has_arithmetic(tensor: Tensor) -> bool:
    """Return whether norms of a tensor can be computed: it is not quantised, and torch can convert its dtype to float32."""
    if tensor.is_quantized:
        return False
    try:
        torch.empty(1, dtype=tensor.dtype).to(torch.complex64 if tensor.is_complex() else torch.float32)
    except NotImplementedError:
        return False
    return True


def quantiser_of(tensor: Tensor) -> tuple[torch.qscheme, list[float], list[int]]:
    """Return (scheme, scales, zero points) of a quantised tensor: with its integers, they are its value."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return tensor.qscheme(), [tensor.q_scale()], [tensor.q_zero_point()]
    return tensor.qscheme(), tensor.q_per_channel_scales().tolist(), tensor.q_per_channel_zero_points().tolist()


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return a copy of a nested value in which each leaf (everything that is no container) is replaced by `function(leaf)`.

    Containers are those of torch's pytree (tuples, lists, dicts, named tuples, registered classes) and instances of any
    other class of MutableMapping. These other mappings are copied by `copy.copy`, so that the copies have the same
    attributes.
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
    """Return a copy of a nested value (dicts, lists, tuples) in which each tensor is replaced by `function(tensor)`."""
    return map_leaves(value, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)


def leaves_in(value: Any) -> list[Any]:
    """Return all leaves of a nested value (dicts, lists, tuples) in order; a leaf is everything that is no container."""
    leaves: list[Any] = []
    map_leaves(value, leaves.append)
    return leaves


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a nested value (dicts, lists, tuples), in order."""
    return [leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor)]

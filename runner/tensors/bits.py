"""Comparison of tensors bit by bit, and what their memory holds."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from runner.shards import local, sharding_of

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    if one is other:
        return True
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
    is_plain = type(left) is type(right) is Tensor and left.device.type == "cpu"
    if is_plain and torch.get_num_threads() == 1 and (memcmp := _memcmp()):  # 1.6 x as fast as `torch.equal` with one thread
        pointers = (ctypes.c_void_p(each.data_ptr()) for each in (left, right))
        return memcmp(*pointers, ctypes.c_size_t(left.numel() * left.element_size())) == 0
    return torch.equal(left, right)


@cache
def _memcmp() -> Callable[..., int] | None:
    """Return the function of the C library that compares memory; None where it is not found under that name."""
    try:
        return ctypes.CDLL(None).memcmp
    except (OSError, TypeError, AttributeError):  # Windows has no library of the process itself
        return None


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

"""Outlines: tensors on the CPU that have shape, strides and dtype but no values, on which torch's autograd runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

CPU = torch.device("cpu")
PLAIN = (Tensor, nn.Parameter, nn.Buffer)


class NotOutlinedError(Exception):
    """Raised where outlines cannot say what a step does; it is then counted on torch's fake tensors, or with values."""


@dataclass(frozen=True, eq=False)  # equal ones are the same object, so that comparing and hashing them takes no time
class Form:
    """Size, strides, offset into memory, and dtype: what a tensor without values is. Made by `form` and `form_of` only."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def tensor(self, device: torch.device | str) -> Tensor:
        """Return a tensor of this form; its memory is as long as the form needs."""
        if not self.offset:
            return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)
        furthest = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        memory = torch.empty(self.offset + max(furthest + 1, 0), dtype=self.dtype, device=device)
        return memory.as_strided(self.size, self.stride, self.offset)


@lru_cache(maxsize=2**16)
def form(size: tuple[int, ...], stride: tuple[int, ...], offset: int, dtype: torch.dtype) -> Form:
    """Return the form of these fields."""
    return Form(size, stride, offset, dtype)


def form_of(tensor: Tensor) -> Form:
    """Return the form of a tensor."""
    if isinstance(tensor, Outline):
        return tensor.form
    return form(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


class Memory:
    """The memory that a tensor would take if it had values; its views have the same."""

    __slots__ = ("__weakref__", "size")

    def __init__(self, size: int) -> None:
        self.size = size

    def nbytes(self) -> int:
        """Return its size in bytes."""
        return self.size


class Outline(FakeTensor):
    """A tensor without values: torch's own kind of it, for code that asks whether a tensor has any, but without its mode.

    Operators on it are answered by the function `execute` of its class, which is in `results`.

    Attributes:
        form: its size, strides, offset and dtype.
        memory: the memory that it would take.
    """

    form: Form
    memory: Memory
    execute: Callable[..., Any]
    device = Tensor.device  # of these, torch's own kind asks its mode
    layout = Tensor.layout
    is_mkldnn = Tensor.is_mkldnn
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def make(form: Form, memory: Memory, requires_grad: bool = False) -> Outline:
        """Return an outline of this form."""
        made: Outline = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Outline,
            form.size,
            strides=form.stride,
            storage_offset=form.offset,
            dtype=form.dtype,
            device=CPU,
            requires_grad=requires_grad,
        )
        made.form, made.memory = form, memory
        return made

    @classmethod
    def like(cls, tensor: Tensor) -> Outline:
        """Return an outline of a leaf tensor on the CPU or the meta device, a parameter if it is one.

        Raises NotOutlinedError for tensors that are more than their form, such as sparse ones and parts of others.
        """
        if not isinstance(tensor, Outline):
            if not (type(tensor) in PLAIN and is_plain(tensor) and tensor.is_leaf and is_whole(tensor)):
                raise NotOutlinedError(f"a {type(tensor).__name__} is more than its form")
            size = tensor.untyped_storage().nbytes()
        else:
            size = tensor.memory.nbytes()
        made = cls.make(form_of(tensor), Memory(size), tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            made._is_param = True  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Return what an operator returns, as outlines."""
        return cls.execute(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """An outline of the same memory that autograd does not follow."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        raise NotOutlinedError("another tensor's memory is put in the place of this one's")

    def __deepcopy__(self, memo: Any) -> Outline:
        raise NotOutlinedError("copy.deepcopy of a tensor")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Outline({self.form})"


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is a dense one on the CPU or the meta device whose form says all about it but its values."""
    unusual = tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg()
    return tensor.layout is torch.strided and tensor.device.type in ("cpu", "meta") and not unusual


def is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor has its memory alone, and is no view of another one if it trains."""
    has_all = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return has_all and not (tensor.requires_grad and tensor._is_view())

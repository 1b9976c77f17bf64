"""The sizes of what convolutions and batch norm return, for which torch has only slow kernels without values.

Each rule takes an operator's arguments, forms in place of tensors, and returns the forms of its results: those that torch's
fake tensors give. It returns NotImplemented where it does not know them: for tensors that are not row-major, for example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from runner.cost.operators.outline import Form, form

aten = torch.ops.aten
Rule = Callable[..., Any]


def row_major(size: Sequence[int], dtype: torch.dtype) -> Form:
    """Return the form of a new tensor whose last dimension is adjacent in memory."""
    strides, step = [], 1
    for length in reversed(size):
        strides.append(step)
        step *= max(length, 1)
    return form(tuple(size), tuple(reversed(strides)), 0, dtype)


def is_row_major(*forms: Form | None) -> bool:
    """Return whether all tensors are row-major and have elements; None is left out."""
    given = [each for each in forms if each is not None]
    return all(0 not in each.size and row_major(each.size, each.dtype).stride == each.stride for each in given)


def convolution(x: Form, weight: Form, bias: Form | None, *more: Any) -> Any:
    """The output of a convolution in one to three dimensions; torch's `ConvNd` says how its size is computed."""
    stride, padding, dilation, transposed, _, _ = more
    spatial = len(weight.size) - 2
    if transposed or len(x.size) != spatial + 2 or not is_row_major(x, weight) or not _same_dtype(x, weight, bias):
        return NotImplemented
    per_dimension = [_each(value, spatial) for value in (stride, padding, dilation)]
    lengths = zip(x.size[2:], weight.size[2:], *per_dimension, strict=True)
    size = [(length + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for length, kernel, step, pad, gap in lengths]
    return row_major((x.size[0], weight.size[0], *size), x.dtype) if min(size) > 0 else NotImplemented


def convolution_backward(gradient: Form, x: Form, weight: Form, bias_sizes: Any, *more: Any) -> Any:
    """The gradients of the input, the weight and the bias."""
    transposed, wanted = more[3], more[6]
    given = gradient, x, weight
    if transposed or len(x.size) != len(weight.size) or not is_row_major(*given) or not _same_dtype(*given):
        return NotImplemented
    sizes = x.size, weight.size, bias_sizes
    return tuple(row_major(size, x.dtype) if asked else None for size, asked in zip(sizes, wanted, strict=True))


def batch_norm(x: Form, weight: Form | None, bias: Form | None, *more: Any) -> Any:
    """The output, and the mean and the inverse deviation of each channel, which are empty in eval mode."""
    is_training = more[-3]
    if is_training and prod(x.size) == x.size[1]:  # one value a channel, of which torch computes no deviation
        return NotImplemented
    if not _are_normalised(x, weight, bias, *more[:-3]):
        return NotImplemented
    saved = row_major((x.size[1],) if is_training else (0,), x.dtype)
    return row_major(x.size, x.dtype), saved, saved


def batch_norm_backward(gradient: Form, x: Form, weight: Form | None, *more: Any) -> Any:
    """The gradients of the input, which is computed whether it is asked for or not, of the weight and of the bias."""
    *statistics, _, _, wanted = more
    if not _are_normalised(x, weight, *statistics) or row_major(x.size, x.dtype) is not gradient:
        return NotImplemented
    channels = row_major((x.size[1],), x.dtype)
    return row_major(x.size, x.dtype), *(channels if asked else None for asked in wanted[1:])


def _are_normalised(x: Form, *others: Form | None) -> bool:
    """Return whether these are the arguments of a batch norm as it is known here."""
    is_known = x.dtype in (torch.float32, torch.float64) and len(x.size) > 1
    return is_known and is_row_major(x) and _same_dtype(x, *others)


def _same_dtype(*forms: Form | None) -> bool:
    """Return whether all tensors have one dtype; None is left out."""
    return len({each.dtype for each in forms if each is not None}) == 1


def _each(value: Sequence[int], dimensions: int) -> Sequence[int]:
    """Return a value for each dimension; one value is that of all."""
    return value if len(value) == dimensions else [value[0]] * dimensions


RULES: dict[Any, Rule] = {
    aten.convolution.default: convolution,
    aten.convolution_backward.default: convolution_backward,
    aten._native_batch_norm_legit.default: batch_norm,
    aten._native_batch_norm_legit.no_stats: batch_norm,
    aten.native_batch_norm_backward.default: batch_norm_backward,
}

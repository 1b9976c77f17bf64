"""The FLOPs of operators that multiply matrices: torch's formulas, and own ones where torch has none or a wrong one.

A FLOP is a multiplication or an addition, so that a product of an (m, k) and a (k, n) matrix takes 2 * m * k * n of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

Formula = Callable[..., int]  # called with the operator's own arguments, and its result as `out_val`


def convolution(x: Tensor, weight: Tensor, *arguments: Any, out_val: Any, **_: Any) -> int:
    """Each element of the output, or of the input if transposed, is multiplied with a slice of the weight."""
    transposed = arguments[4]
    return 2 * (x if transposed else out_val).numel() * prod(weight.shape[1:])


def convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *arguments: Any, **_: Any) -> int:
    """The gradient of the input and that of the weight take as many FLOPs each as the forward pass.

    torch's own formula ignores `groups` here: https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py
    """
    transposed, wanted = arguments[4], arguments[7]
    return (wanted[0] + wanted[1]) * 2 * (x if transposed else gradient).numel() * prod(weight.shape[1:])


def deformable_convolution(x: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """As a convolution of torchvision; the offsets and the interpolation do not count."""
    return 2 * out_val.numel() * prod(weight.shape[1:])


def deformable_convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Twice the forward pass: the operator always computes the gradients of input and weight."""
    return 2 * 2 * gradient.numel() * prod(weight.shape[1:])


def matrix_product(a: Tensor, b: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """A product of matrices, of stacks of matrices, or of groups of rows or columns, as mixtures of experts use it.

    In a grouped product of two matrices, each group is a part of the dimension that is summed over.
    """
    packed = 2 if str(a.dtype).endswith("_x2") else 1  # two numbers an element
    if a.dim() == b.dim() == 2 and out_val.dim() == 3:
        return 2 * a.numel() * packed * b.shape[-1]
    return 2 * out_val.numel() * packed * a.shape[-1]


def product_added_to(_: Tensor, a: Tensor, *__: Any, out_val: Tensor, **___: Any) -> int:
    """A product with a vector or a sum of products, added to a tensor: each element of `a` is used once a column."""
    return 2 * a.numel() * (out_val.shape[-1] if a.dim() > 2 else 1)


def product_with_vector(a: Tensor, *_: Any, **__: Any) -> int:
    """A product of a matrix or a vector with a vector."""
    return 2 * a.numel()


def linear_backward(x: Tensor, gradient: Tensor, weight: Tensor, wanted: Sequence[bool], **_: Any) -> int:
    """The gradients of the input and of the weight, each as a matrix product."""
    return (wanted[0] + wanted[1]) * 2 * gradient.numel() * weight.shape[-1]


def products_of_lists(first: Sequence[Tensor], *_: Any, out_val: Sequence[Tensor], **__: Any) -> int:
    """One matrix product for each pair."""
    return sum(2 * out.numel() * a.shape[-1] for a, out in zip(first, out_val, strict=True))


def trilinear(*arguments: Any, **_: Any) -> int:
    """A product of three tensors, summed over some dimensions; `nn.Bilinear` is the caller."""
    shapes = [list(tensor.shape) for tensor in arguments[:3]]
    for shape, expanded in zip(shapes, arguments[3:6], strict=True):
        for dimension in sorted(expanded):
            shape.insert(dimension, 1)
    return 2 * prod(torch.broadcast_shapes(*shapes))


def euclidean_distance(x: Tensor, y: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """`torch.cdist` by a matrix product, with two columns for the squared norms."""
    return 2 * out_val.numel() * (x.shape[-1] + 2)


def recurrent_layer(x: Tensor, weights: Any, *more: Any, **_: Any) -> int:
    """Each element of the weight matrices is used once for each position of each sequence.

    `weights`: the list of cuDNN's operator; oneDNN's has its two matrices as two arguments.
    """
    matrices = [weights, more[0]] if isinstance(weights, Tensor) else weights
    return 2 * prod(x.shape[:-1]) * sum(matrix.numel() for matrix in matrices if matrix.dim() == 2)


def recurrent_layer_backward(x: Tensor, weights: Any, *more: Any, **_: Any) -> int:
    """As the forward pass for the gradients of input and states, and once more for those of the weights."""
    wanted = more[-1]  # of cuDNN: which gradients; oneDNN's operator computes all
    passes = 1 + wanted[3] if isinstance(wanted, (list, tuple)) else 2
    return passes * recurrent_layer(x, weights, *more)


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Queries times keys, and the result times values, without regard to a mask."""
    return flop_counter.sdpa_flop_count(query.shape, key.shape, value.shape)


def attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Five products, one of which computes the scores again."""
    return flop_counter.sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


def nothing(*_: Any, **__: Any) -> int:
    """For operators of other libraries that are known not to multiply matrices."""
    return 0


FORMULAS: dict[str, Formula] = {  # in-place variants such as `addmv_` are found too; they go before torch's own formulas
    **dict.fromkeys(("aten::convolution", "aten::_convolution"), convolution),
    "aten::convolution_backward": convolution_backward,
    **dict.fromkeys(("aten::_int_mm", "aten::linear", "aten::_weight_int8pack_mm"), matrix_product),
    **dict.fromkeys((f"aten::_weight_int4pack_mm{end}" for end in ("", "_for_cpu")), matrix_product),
    **dict.fromkeys((f"aten::_scaled_{kind}mm{end}" for kind in ("", "grouped_") for end in ("", "_v2")), matrix_product),
    "aten::_grouped_mm": matrix_product,
    "aten::_foreach_mm": products_of_lists,
    **dict.fromkeys(("aten::addmv", "aten::addbmm"), product_added_to),
    **dict.fromkeys(("aten::mv", "aten::dot", "aten::vdot"), product_with_vector),
    "aten::linear_backward": linear_backward,
    "aten::_trilinear": trilinear,
    "aten::_euclidean_dist": euclidean_distance,
    **dict.fromkeys(("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn"), recurrent_layer),
    **dict.fromkeys(("aten::mkldnn_rnn_layer_backward", "aten::_cudnn_rnn_backward"), recurrent_layer_backward),
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    "aten::_scaled_dot_product_fused_attention_overrideable": attention,
    "aten::_scaled_dot_product_fused_attention_overrideable_backward": attention_backward,
    "torchvision::deform_conv2d": deformable_convolution,
    "torchvision::_deform_conv2d_backward": deformable_convolution_backward,
    "torchvision::nms": nothing,
    **dict.fromkeys((f"torchvision::{kind}roi_{way}" for kind in ("", "ps_") for way in ("align", "pool")), nothing),
    **dict.fromkeys(
        (f"torchvision::_{kind}roi_{way}_backward" for kind in ("", "ps_") for way in ("align", "pool")), nothing
    ),
}
WITH_WORKSPACE = {"aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", "aten::miopen_rnn"}
"""Operators that keep memory for backward whose size is not known without values."""
PRODUCT_WORDS = re.compile(  # parts of names, between underscores; digits such as those of `conv2d` are removed before
    "(b?add)?b?mm|h?s?s?mm|sspaddmm|(add)?mv|matmul|v?dot|chain|conv|convolution|depthwise|linear|trilinear|lstm|gru"
    "|rnn|attention|encoder|linalg|cholesky|lu|ormqr|geqrf|triangular|gemm|einsum"
)
NO_PRODUCT_WORDS = {"upsample", "thnn", "vector", "cross", "powsum", "prepack", "reorder", "flatten"}
OF_TORCH = {"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "quantized", "inductor", "rngprims"}


@lru_cache(maxsize=4096)
def formula_of(operator: Any) -> Formula | None:
    """Return the function that gives an operator's FLOPs, or None if neither this project nor torch has one.

    `operator`: an OpOverload such as `torch.ops.aten.mm.default`, or a higher-order operator. The function is called with
    the operator's arguments, and with its result as the keyword `out_val`. A formula that a user gave to torch by
    `torch.utils.flop_counter.register_flop_formula` is found, if it was given before the operator was first counted.
    """
    name = name_of(operator)
    packet = getattr(operator, "overloadpacket", operator)
    if found := FORMULAS.get(name) or flop_counter.flop_registry.get(packet):
        return found
    namespace, _, base = name.removesuffix("_").partition("::")
    not_in_place = getattr(getattr(torch.ops, namespace), base, None) if name.endswith("_") and base else None
    return FORMULAS.get(f"{namespace}::{base}") or flop_counter.flop_registry.get(not_in_place)


@lru_cache(maxsize=4096)
def name_of(operator: Any) -> str:
    """Return the name of an operator without its overload, such as `aten::mm`."""
    return operator.name().partition(".")[0]


def operands(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments or results, which are tensors, lists of tensors, or other values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from operands(item)


def may_multiply_matrices(operator: Any, arguments: Any) -> bool:
    """Return whether an operator without a formula may multiply matrices, so that a total without it may be wrong.

    An operator of torch does if its name says so. One of another library may if it takes a matrix, or a tensor of more
    dimensions.
    """
    if _name_says_product(operator):
        return True
    return not is_of_torch(operator) and any(tensor.dim() > 1 for tensor in operands(arguments))


def is_of_torch(operator: Any) -> bool:
    """Return whether an operator is torch's own, so that its name says whether it multiplies matrices."""
    return name_of(operator).partition("::")[0] in OF_TORCH


def depends_on_values(operator: Any, arguments: Any) -> bool:
    """Return whether the values of the arguments decide about the result's shape, or are handed to Python (`item()`).

    What the model does next may then depend on them, and with it the FLOPs of a step.
    Source: https://docs.pytorch.org/docs/stable/torch.html#torch.Tag
    """
    if name_of(operator) == "aten::index":  # only by a mask
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in list(operands(arguments))[1:])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(getattr(operator, "tags", ())))


@lru_cache(maxsize=4096)
def _name_says_product(operator: Any) -> bool:
    """Return whether the name of an operator says that it multiplies matrices, as in `aten::slow_conv3d`."""
    words = re.sub(r"\d+d?", "", name_of(operator).partition("::")[2] or name_of(operator)).split("_")
    return any(PRODUCT_WORDS.fullmatch(word) for word in words) and not NO_PRODUCT_WORDS & set(words)

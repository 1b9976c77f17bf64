"""The entries of a model's tensors, the check for dense tensors, the comparison of bits, and nested batches."""

from __future__ import annotations

import warnings
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet18

from runner.errors import ConfigError
from runner.tensors import leaves_in, map_tensors, refuse_unless_dense, same_bits, tensor_entries, tensors_in
from runner.training.models import MLP

HYPOTHESIS_SETTINGS = settings(max_examples=200, deadline=None, database=None, derandomize=True)
FLOATS = [
    torch.float8_e4m3fn,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


class OneBuffer(nn.Module):
    """A module with a single buffer."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("buffer", tensor)


class Wrapped(Tensor):
    """A tensor subclass without memory of its own, like sharded and quantised tensors."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


# Entries


def expected_names(model: nn.Module) -> list[str]:
    """Return, for each module in order, the names of its own parameters and then of its own buffers."""
    names = []
    for owner, module in model.named_modules():
        for tensors in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            names += [f"{owner}.{name}" if owner else name for name, _ in tensors]
    return names


def test_resnet18_has_122_entries_62_parameters_and_60_buffers_in_the_order_of_the_contract():
    model = resnet18()
    entries = tensor_entries(model)
    assert list(entries) == expected_names(model)
    assert list(entries)[:6] == ["conv1.weight", "bn1.weight", "bn1.bias", *(f"bn1.{b}" for b in model.bn1._buffers)]
    kinds = [entry.kind for entry in entries.values()]
    assert (len(entries), kinds.count("parameter"), kinds.count("buffer")) == (122, 62, 60)
    assert all(entry.tensor is model.state_dict(keep_vars=True)[name] for name, entry in entries.items())


def test_an_entry_has_the_name_and_the_type_of_its_module():
    entry = tensor_entries(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))))["1.0.running_mean"]
    assert (entry.kind, entry.owner, entry.module_type) == ("buffer", "1.0", "BatchNorm1d")
    entry = tensor_entries(nn.Linear(2, 2))["weight"]
    assert (entry.kind, entry.owner, entry.module_type) == ("parameter", "", "Linear")


def test_a_tied_tensor_is_one_entry_with_its_first_name_and_the_others_as_aliases():
    entries = tensor_entries(MLP([3]))
    assert entries["there.weight"].aliases == ["back.weight"]
    assert "back.weight" not in entries
    assert entries["there.weight"].names == ["there.weight", "back.weight"]
    assert [name for name, entry in entries.items() if entry.aliases] == ["there.weight"]


def test_each_tensor_of_a_module_with_two_names_has_two_names():
    shared = nn.BatchNorm1d(2)
    entries = tensor_entries(nn.Sequential(shared, nn.ReLU(), shared))
    assert {name: entry.aliases for name, entry in entries.items()} == {
        f"0.{name}": [f"2.{name}"] for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_tensors_with_equal_values_are_separate_entries():
    entries = tensor_entries(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))
    assert len(entries) == 10
    assert not any(entry.aliases for entry in entries.values())


def test_names_and_parameters_are_those_of_named_parameters():
    for model in (MLP([3]), nn.TransformerEncoderLayer(4, 2, 4)):
        parameters = {name: entry.tensor for name, entry in tensor_entries(model).items() if entry.kind == "parameter"}
        assert {name: id(tensor) for name, tensor in parameters.items()} == {n: id(p) for n, p in model.named_parameters()}


def test_non_persistent_buffers_are_entries_and_missing_tensors_are_not():
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("mask", torch.ones(2), persistent=False)
    model.register_buffer("nothing", None)
    assert list(tensor_entries(model)) == ["weight", "mask"]
    assert "mask" not in model.state_dict()


# The check for dense tensors


def without_warnings(make_tensor: Callable[[], Tensor]) -> nn.Module:
    """Return a model with a tensor of a kind that torch warns about when it is created."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OneBuffer(make_tensor())


def packed(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose linear layers are quantised; their weights are packed for torch's kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(model), {nn.Linear})[0]


def test_layers_that_are_only_prepared_for_quantisation_are_accepted():
    from torchvision.models.quantization import resnet18

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = resnet18(weights=None, quantize=False)
    refuse_unless_dense(model)
    refuse_unless_dense(without_warnings(lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "0.weight is not initialised yet"),
        (lambda: nn.LazyBatchNorm1d(), "not initialised yet"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
        (lambda: OneBuffer(torch.eye(2).to_sparse()), "buffer is sparse"),
        (lambda: without_warnings(lambda: torch.eye(2).to_sparse_csr()), "buffer is sparse"),
        (lambda: packed(nn.Sequential(nn.Linear(2, 2))), "0._packed_params has packed its quantised weights"),
        (lambda: packed(nn.Linear(2, 2)), "_packed_params has packed its quantised weights"),
        (lambda: OneBuffer(Wrapped(torch.ones(2))), "buffer is a Wrapped"),
        (lambda: without_warnings(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), "buffer is"),
    ],
)
def test_lazy_meta_sparse_packed_nested_and_subclass_tensors_are_refused_with_one_line(model, message):
    with pytest.raises(ConfigError) as caught:
        refuse_unless_dense(model())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.fixture
def mesh():
    """Return a device mesh of one process."""
    from torch.distributed.tensor import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_sharded_parameter_is_refused_with_one_line(mesh):
    from torch.distributed.tensor import distribute_tensor

    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh))
    with pytest.raises(ConfigError, match=r"^model: weight is a DTensor [^\n]*$"):
        refuse_unless_dense(model)


@pytest.mark.parametrize(
    "model",
    [
        MLP([3]),
        nn.Linear(2, 2, dtype=torch.bfloat16),
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        OneBuffer(torch.ones(2, dtype=torch.complex64)),
        OneBuffer(torch.ones(0)),
        OneBuffer(torch.tensor(True)),
        OneBuffer(torch.ones(1).expand(5)),
        nn.ReLU(),
    ],
)
def test_dense_tensors_of_any_dtype_layout_and_size_are_accepted(model):
    refuse_unless_dense(model)


# Bits


def raw_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor in logical order."""
    return bytes(tensor.clone(memory_format=torch.contiguous_format).untyped_storage())


def at_offset(content: bytes, dtype: torch.dtype, offset: int) -> Tensor:
    """Return a tensor of these bytes that begins `offset` elements after the beginning of its storage."""
    return torch.frombuffer(bytearray(bytes(offset * dtype.itemsize) + content + bytes(16)), dtype=dtype)[
        offset : offset + len(content) // dtype.itemsize
    ]


@st.composite
def bytes_for(draw, dtype: torch.dtype) -> bytes:
    """Generate the bytes of 0 to 9 elements of this type; booleans are 0 or 1."""
    length = draw(st.integers(0, 9)) * dtype.itemsize
    content = draw(st.binary(min_size=length, max_size=length))
    return bytes(byte & 1 for byte in content) if dtype is torch.bool else content


@pytest.fixture(params=[1, 2])
def threads(request):
    """The number of threads, which decides what compares memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
def test_same_bits_agrees_with_a_comparison_of_bytes_at_every_offset(dtype):
    @settings(HYPOTHESIS_SETTINGS, max_examples=40)
    @given(st.data(), st.integers(0, 9), st.integers(0, 9))
    def check(data, left_offset, right_offset):
        content = data.draw(bytes_for(dtype))
        changed = bytearray(content)
        if content and data.draw(st.booleans()):
            position = data.draw(st.integers(0, len(content) - 1))
            changed[position] ^= 1 if dtype is torch.bool else 1 << data.draw(st.integers(0, 7))
        left, right = at_offset(content, dtype, left_offset), at_offset(bytes(changed), dtype, right_offset)
        assert raw_bytes(left) == content
        assert raw_bytes(right) == bytes(changed)
        assert same_bits(left, right) == (raw_bytes(left) == raw_bytes(right))

    check()


@HYPOTHESIS_SETTINGS
@given(st.sampled_from([*INTEGERS, *FLOATS]), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.booleans())
def test_same_bits_compares_values_in_logical_order_for_any_strides(dtype, rows, columns, step, flip):
    tensor = (torch.arange(rows * columns * step) % 7).to(dtype).reshape(rows, columns * step)[:, ::step]
    other = tensor.t().contiguous().t()
    if flip and other.numel():
        other[-1, -1] = (other[-1, -1].to(torch.complex128) == 0).to(dtype)
    assert same_bits(tensor, other) == (raw_bytes(tensor) == raw_bytes(other))


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_minus_zero_differs_from_zero_and_nans_with_equal_bits_are_the_same(dtype):
    zero = torch.zeros(3, dtype=dtype)
    assert torch.equal(zero, -zero)
    assert not same_bits(zero, -zero)
    nan = torch.full((3,), float("nan"), dtype=dtype)
    assert not torch.equal(nan, nan.clone())
    assert same_bits(nan, nan.clone())


def test_nans_with_different_bits_differ():
    nan, other = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32).split(1)
    assert nan.isnan().all()
    assert other.isnan().all()
    assert not same_bits(nan, other)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(1), torch.zeros(())),
        (torch.zeros(0, 2), torch.zeros(2, 0)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16)),
    ],
)
def test_tensors_of_different_shape_or_dtype_are_never_the_same(left, right):
    assert not same_bits(left, right)


def test_a_parameter_can_be_compared_with_a_tensor():
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    assert same_bits(layer.weight, before)
    with torch.no_grad():
        layer.weight[2, 2] = torch.nextafter(layer.weight[2, 2], torch.tensor(9.0))
    assert not same_bits(layer.weight, before)


@pytest.mark.parametrize("view", [lambda z: z.conj(), lambda z: z.conj().imag], ids=["conjugate", "negative"])
def test_a_lazily_conjugated_or_negated_view_is_compared_by_its_values(view):
    tensor = view(torch.tensor([1 + 2j, 3 - 4j]))
    assert same_bits(tensor, tensor.clone())
    assert not same_bits(tensor, tensor + 1)


class Encoding(UserDict):
    """A mapping with an attribute, like BatchEncoding of transformers."""

    def __init__(self, data, language):
        super().__init__(data)
        self.language = language


class Pair(NamedTuple):
    x: Any
    y: Any


NESTED = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, "text"),
    "list": lambda x: [x, [x, None]],
    "dict": lambda x: {"x": x, "n": 3},
    "ordered": lambda x: OrderedDict(b=x, a=x),
    "default": lambda x: defaultdict(list, {"x": [x]}),
    "named tuple": lambda x: Pair(x, [x]),
    "user dict": lambda x: Encoding({"x": x, "more": {"y": x}}, "en"),
    "user dict in a named tuple": lambda x: Pair(Encoding({"x": Pair(x, x)}, "en"), 1),
}


@pytest.mark.parametrize("name", NESTED)
def test_map_tensors_keeps_classes_attributes_and_order_and_does_not_change_its_argument(name):
    zeros, ones = torch.zeros(2), torch.ones(2)
    value = NESTED[name](zeros)
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert_same_structure(changed, NESTED[name](ones))
    assert_same_structure(value, NESTED[name](torch.zeros(2)))
    assert all(tensor is zeros for tensor in tensors_in(value))
    assert len(tensors_in(changed)) == len(tensors_in(value)) > 0


def assert_same_structure(left, right) -> None:
    """Assert that classes, keys and their order, attributes and leaves are equal at every level."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, Mapping):
        assert list(left) == list(right)
        assert getattr(left, "language", None) == getattr(right, "language", None)
        assert getattr(left, "default_factory", None) == getattr(right, "default_factory", None)
        for key in left:
            assert_same_structure(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for left_item, right_item in zip(left, right, strict=True):
            assert_same_structure(left_item, right_item)
    else:
        assert left == right


def test_values_that_are_not_containers_are_leaves():
    model = nn.Linear(1, 1)
    assert leaves_in({"a": model, "b": (None, "text", 3)}) == [model, None, "text", 3]

"""The tensors of a model: their names and order, which are refused, and when two hold the same bits."""

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

CHECKED = settings(max_examples=200, deadline=None, database=None, derandomize=True)
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


class Holder(nn.Module):
    """A module with one buffer and nothing else."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", tensor)


class Wrapped(Tensor):
    """A tensor subclass that is no memory of its own, as sharded and quantised ones are."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


# Entries


def slow_names(model: nn.Module) -> list[str]:
    """Each module in order, its own parameters, then its own buffers."""
    names = []
    for owner, module in model.named_modules():
        for own in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            names += [f"{owner}.{name}" if owner else name for name, _ in own]
    return names


def test_resnet18_has_122_entries_62_parameters_and_60_buffers_in_the_order_of_the_contract():
    model = resnet18()
    found = tensor_entries(model)
    assert list(found) == slow_names(model)
    assert list(found)[:6] == ["conv1.weight", "bn1.weight", "bn1.bias", *(f"bn1.{b}" for b in model.bn1._buffers)]
    kinds = [entry.kind for entry in found.values()]
    assert (len(found), kinds.count("parameter"), kinds.count("buffer")) == (122, 62, 60)
    assert all(entry.tensor is model.state_dict(keep_vars=True)[name] for name, entry in found.items())


def test_an_entry_knows_its_owner_and_the_type_of_its_module():
    entry = tensor_entries(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))))["1.0.running_mean"]
    assert (entry.kind, entry.owner, entry.module_type) == ("buffer", "1.0", "BatchNorm1d")
    own = tensor_entries(nn.Linear(2, 2))["weight"]
    assert (own.kind, own.owner, own.module_type) == ("parameter", "", "Linear")


def test_a_tied_tensor_is_one_entry_under_its_first_name_with_the_others_as_aliases():
    found = tensor_entries(MLP([3]))
    assert found["there.weight"].aliases == ["back.weight"]
    assert "back.weight" not in found
    assert found["there.weight"].names == ["there.weight", "back.weight"]
    assert [name for name, entry in found.items() if entry.aliases] == ["there.weight"]


def test_a_module_under_two_names_gives_each_tensor_two_names():
    shared = nn.BatchNorm1d(2)
    found = tensor_entries(nn.Sequential(shared, nn.ReLU(), shared))
    assert {name: entry.aliases for name, entry in found.items()} == {
        f"0.{name}": [f"2.{name}"] for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_tensors_of_equal_values_are_entries_of_their_own():
    found = tensor_entries(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))
    assert len(found) == 10
    assert not any(entry.aliases for entry in found.values())


def test_first_names_and_parameters_are_those_that_torch_gives():
    for model in (MLP([3]), nn.TransformerEncoderLayer(4, 2, 4)):
        ours = {name: entry.tensor for name, entry in tensor_entries(model).items() if entry.kind == "parameter"}
        assert {name: id(tensor) for name, tensor in ours.items()} == {n: id(p) for n, p in model.named_parameters()}


def test_non_persistent_buffers_are_entries_and_absent_tensors_are_not():
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("mask", torch.ones(2), persistent=False)
    model.register_buffer("nothing", None)
    assert list(tensor_entries(model)) == ["weight", "mask"]
    assert "mask" not in model.state_dict()


# What cannot be watched


def unusual(make: Callable[[], Tensor]) -> nn.Module:
    """A model that holds what torch warns of when it is made: beta, prototype or deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Holder(make())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "0.weight is not initialised yet"),
        (lambda: nn.LazyBatchNorm1d(), "not initialised yet"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
        (lambda: Holder(torch.eye(2).to_sparse()), "held is sparse"),
        (lambda: unusual(lambda: torch.eye(2).to_sparse_csr()), "held is sparse"),
        (lambda: unusual(lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)), "held is quantised"),
        (lambda: Holder(Wrapped(torch.ones(2))), "held is a Wrapped"),
        (lambda: unusual(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), "held is"),
    ],
)
def test_what_is_lazy_meta_sparse_quantised_nested_or_a_subclass_is_refused_with_one_line(model, said):
    with pytest.raises(ConfigError) as caught:
        refuse_unless_dense(model())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.fixture
def mesh():
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
        Holder(torch.ones(2, dtype=torch.complex64)),
        Holder(torch.ones(0)),
        Holder(torch.tensor(True)),
        Holder(torch.ones(1).expand(5)),
        nn.ReLU(),
    ],
)
def test_dense_tensors_of_any_type_layout_and_size_are_accepted(model):
    refuse_unless_dense(model)


# Bits


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor in logical order, read one by one from a storage of its own."""
    return bytes(tensor.clone(memory_format=torch.contiguous_format).untyped_storage())


def at_offset(content: bytes, dtype: torch.dtype, offset: int) -> Tensor:
    """A tensor of these bytes that begins `offset` elements into its storage."""
    return torch.frombuffer(bytearray(bytes(offset * dtype.itemsize) + content + bytes(16)), dtype=dtype)[
        offset : offset + len(content) // dtype.itemsize
    ]


@st.composite
def bytes_of(draw, dtype: torch.dtype) -> bytes:
    length = draw(st.integers(0, 9)) * dtype.itemsize
    found = draw(st.binary(min_size=length, max_size=length))
    return bytes(byte & 1 for byte in found) if dtype is torch.bool else found


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
def test_same_bits_agrees_with_a_comparison_of_bytes_at_every_offset(dtype):
    @settings(CHECKED, max_examples=40)
    @given(st.data(), st.integers(0, 9), st.integers(0, 9))
    def agrees(data, one, other):
        content = data.draw(bytes_of(dtype))
        changed = bytearray(content)
        if content and data.draw(st.booleans()):
            position = data.draw(st.integers(0, len(content) - 1))
            changed[position] ^= 1 if dtype is torch.bool else 1 << data.draw(st.integers(0, 7))
        left, right = at_offset(content, dtype, one), at_offset(bytes(changed), dtype, other)
        assert raw(left) == content
        assert raw(right) == bytes(changed)
        assert same_bits(left, right) == (raw(left) == raw(right))

    agrees()


@CHECKED
@given(st.sampled_from([*INTEGERS, *FLOATS]), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.booleans())
def test_same_bits_looks_at_values_in_their_logical_order_whatever_the_strides(dtype, rows, columns, step, flip):
    one = (torch.arange(rows * columns * step) % 7).to(dtype).reshape(rows, columns * step)[:, ::step]
    other = one.t().contiguous().t()
    if flip and other.numel():
        other[-1, -1] = (other[-1, -1].to(torch.complex128) == 0).to(dtype)
    assert same_bits(one, other) == (raw(one) == raw(other))


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_minus_zero_differs_from_zero_and_equal_nan_bits_do_not_differ(dtype):
    zero = torch.zeros(3, dtype=dtype)
    assert torch.equal(zero, -zero)
    assert not same_bits(zero, -zero)
    nan = torch.full((3,), float("nan"), dtype=dtype)
    assert not torch.equal(nan, nan.clone())
    assert same_bits(nan, nan.clone())


def test_nans_of_different_bits_differ():
    quiet, other = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32).split(1)
    assert quiet.isnan().all()
    assert other.isnan().all()
    assert not same_bits(quiet, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(1), torch.zeros(())),
        (torch.zeros(0, 2), torch.zeros(2, 0)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16)),
    ],
)
def test_another_shape_or_type_is_never_the_same_though_the_bytes_may_be(one, other):
    assert not same_bits(one, other)


def test_a_parameter_is_compared_like_any_tensor():
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    assert same_bits(layer.weight, before)
    with torch.no_grad():
        layer.weight[2, 2] = torch.nextafter(layer.weight[2, 2], torch.tensor(9.0))
    assert not same_bits(layer.weight, before)


@pytest.mark.parametrize("view", [lambda z: z.conj(), lambda z: z.conj().imag], ids=["conjugate", "negative"])
def test_a_lazily_conjugated_or_negated_view_is_compared_by_the_values_it_stands_for(view):
    tensor = view(torch.tensor([1 + 2j, 3 - 4j]))
    assert same_bits(tensor, tensor.clone())
    assert not same_bits(tensor, tensor + 1)


class Encoding(UserDict):
    """As transformers' BatchEncoding is: a mapping of a class of its own, with an attribute."""

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
def test_a_nested_value_keeps_its_classes_attributes_and_order_and_is_not_touched(name):
    one, other = torch.zeros(2), torch.ones(2)
    value = NESTED[name](one)
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert_same_structure(changed, NESTED[name](other))
    assert_same_structure(value, NESTED[name](torch.zeros(2)))
    assert all(tensor is one for tensor in tensors_in(value))
    assert len(tensors_in(changed)) == len(tensors_in(value)) > 0


def assert_same_structure(one, other) -> None:
    """Equal classes, keys in order, attributes and leaves, all the way down."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, Mapping):
        assert list(one) == list(other)
        assert getattr(one, "language", None) == getattr(other, "language", None)
        assert getattr(one, "default_factory", None) == getattr(other, "default_factory", None)
        for key in one:
            assert_same_structure(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_structure(left, right)
    else:
        assert one == other


def test_what_is_no_container_is_a_leaf():
    model = nn.Linear(1, 1)
    assert leaves_in({"a": model, "b": (None, "text", 3)}) == [model, None, "text", 3]

"""How far a tensor moved: norms compared with slow float64 ones, and cases in which they are exactly zero or NaN."""

from __future__ import annotations

import warnings
from math import fsum, inf, isnan, nan, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from runner.proof.changes import CPU_CHUNK, Change, measure_change, snapshot
from runner.training.models import MLP

HYPOTHESIS_SETTINGS = settings(max_examples=200, deadline=None, database=None, derandomize=True)
FLOAT32_AND_SMALLER = [torch.float32, torch.bfloat16, torch.float16]


def slow_norms(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """Norm of the initial values, norm of the difference and largest difference, computed with Python numbers."""
    start = before.detach().reshape(-1).tolist()
    moves = [abs(new - old) for old, new in zip(start, after.detach().reshape(-1).tolist(), strict=True)]
    return sqrt(fsum(abs(x) ** 2 for x in start)), sqrt(fsum(x * x for x in moves)), max(moves, default=0.0)


def slow_moved_elements(before: Tensor, after: Tensor) -> int:
    """Number of elements whose bytes differ, counted one by one."""
    old, new = (bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()) for tensor in (before, after))
    size = before.element_size()
    return sum(old[start : start + size] != new[start : start + size] for start in range(0, len(old), size))


def assert_close(found: Change, expected: tuple[float, float, float], relative: float) -> None:
    got = (found.initial_l2, found.change_l2, found.change_max)
    assert got == pytest.approx(expected, rel=relative, abs=0)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Norms


@pytest.mark.parametrize("count", [1, 5, 1000, 2 * CPU_CHUNK + 3])
@pytest.mark.parametrize("dtype", FLOAT32_AND_SMALLER, ids=str)
def test_norms_of_random_values_agree_with_float64_to_a_millionth(dtype, count):
    before = noise(count, dtype=dtype)
    after = before + 0.1 * noise(count, seed=1, dtype=dtype)
    assert_close(measure_change(before, after), slow_norms(before, after), 1e-6)


@pytest.mark.parametrize("count", [1000, CPU_CHUNK + 3])
@pytest.mark.parametrize("dtype", FLOAT32_AND_SMALLER, ids=str)
@pytest.mark.parametrize(("start", "step"), [(0.7, 1e-3), (1.1, 0.01), (3.3, 0.3)])
def test_norms_are_exact_if_every_element_moves_by_the_same_as_in_the_first_step_of_adam(dtype, count, start, step):
    before = torch.full((count,), start, dtype=dtype)
    after = before - torch.tensor(step, dtype=dtype)
    assert_close(measure_change(before, after), slow_norms(before, after), 1e-6)


@pytest.mark.long
@HYPOTHESIS_SETTINGS
@given(
    st.sampled_from(FLOAT32_AND_SMALLER),
    st.lists(st.tuples(st.floats(-60000, 60000, width=32), st.floats(-60000, 60000, width=32)), min_size=1, max_size=40),
)
def test_norms_of_any_values_agree_with_float64(dtype, pairs):
    before, after = (torch.tensor(values, dtype=dtype) for values in zip(*pairs, strict=True))
    assert_close(measure_change(before, after), slow_norms(before, after), 1e-6)


def test_float64_is_measured_in_float64():
    before = noise(1000, dtype=torch.float64)
    after = before * (1 + 1e-13)
    assert_close(measure_change(before, after), slow_norms(before, after), 1e-12)


@pytest.mark.parametrize("position", [0, CPU_CHUNK - 1, CPU_CHUNK, 2 * CPU_CHUNK])
def test_one_changed_element_is_found_at_the_borders_of_chunks(position):
    before = torch.zeros(2 * CPU_CHUNK + 1)
    after = before.clone()
    after[position] = -0.5
    assert measure_change(before, after) == Change(0.0, 0.5, 0.5, moved=True, moved_elements=1)


@pytest.mark.parametrize("value", [1e30, 3e38, 1e-25, 1e-38, 1e-44])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_norms_are_exact_for_values_whose_squares_overflow_or_vanish_in_float32(dtype, value):
    before = torch.tensor([value, 0.0, -value, value], dtype=dtype)
    after = torch.tensor([value, value, value, 0.0], dtype=dtype)
    assert_close(measure_change(before, after), slow_norms(before, after), 1e-6)


@pytest.mark.parametrize("value", [1e30, 1e-25])
def test_a_huge_or_tiny_change_of_an_ordinary_tensor_is_measured(value):
    before = torch.full((7,), 1.0)
    before[3] = 0.0
    after = before.clone()
    after[3] = value
    assert measure_change(before, after).change_l2 == measure_change(before, after).change_max == torch.tensor(value).item()


def test_the_relative_change_is_relative_to_the_initial_norm_and_none_if_that_is_zero():
    assert measure_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])).change_rel == 0.2
    assert measure_change(torch.zeros(2), torch.ones(2)).change_rel is None
    assert measure_change(torch.zeros(0), torch.zeros(0)).change_rel is None


# Types


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (torch.tensor([True, False]), torch.tensor([False, True]), Change(1.0, sqrt(2), 1.0, True, 2)),
        (
            torch.tensor([0, 3], dtype=torch.uint8),
            torch.tensor([255, 3], dtype=torch.uint8),
            Change(3.0, 255.0, 255.0, True, 1),
        ),
        (
            torch.tensor([-128], dtype=torch.int8),
            torch.tensor([127], dtype=torch.int8),
            Change(128.0, 255.0, 255.0, True, 1),
        ),
        (torch.tensor([3, 4]), torch.tensor([6, 8]), Change(5.0, 5.0, 4.0, True, 2)),
        (torch.tensor(2**40), torch.tensor(2**40 + 1), Change(2.0**40, 1.0, 1.0, True, 1)),
        (torch.tensor(7, dtype=torch.int32), torch.tensor(7, dtype=torch.int32), Change(7.0, 0.0, 0.0, False, 0)),
        (torch.tensor(1.5), torch.tensor(-1.0), Change(1.5, 2.5, 2.5, True, 1)),
        (
            torch.tensor(1.5, dtype=torch.bfloat16),
            torch.tensor(1.75, dtype=torch.bfloat16),
            Change(1.5, 0.25, 0.25, True, 1),
        ),
        (torch.zeros(0), torch.zeros(0), Change(0.0, 0.0, 0.0, False, 0)),
        (torch.zeros(3, 0, 2), torch.zeros(3, 0, 2), Change(0.0, 0.0, 0.0, False, 0)),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), Change(0.0, 0.0, 0.0, False, 0)),
    ],
)
def test_booleans_integers_scalars_and_empty_tensors_have_exact_norms(before, after, expected):
    assert measure_change(before, after) == expected


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_the_norms_of_a_complex_tensor_are_those_of_its_absolute_values(dtype):
    before = torch.tensor([3 + 4j, 1 + 1j], dtype=dtype)
    after = torch.tensor([0 + 0j, 1 + 1j], dtype=dtype)
    found = measure_change(before, after)
    assert (found.initial_l2, found.change_l2, found.moved) == (sqrt(27), 5.0, True)


# Bits


@pytest.mark.parametrize(
    "dtype",
    [*FLOAT32_AND_SMALLER, torch.float64, torch.complex64, torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn],
    ids=str,
)
def test_an_equal_tensor_has_a_change_of_exactly_zero(dtype):
    before = noise(33).to(dtype)
    found = measure_change(before, before.clone())
    assert (found.change_l2, found.change_max, found.moved) == (0.0, 0.0, False)


@pytest.mark.parametrize("dtype", [*FLOAT32_AND_SMALLER, torch.float64, torch.complex64], ids=str)
def test_minus_zero_instead_of_zero_has_moved_by_a_distance_of_zero(dtype):
    zero = torch.zeros(5, dtype=dtype)
    assert measure_change(zero, -zero) == Change(0.0, 0.0, 0.0, moved=True, moved_elements=5)


@pytest.mark.parametrize("dtype", [*FLOAT32_AND_SMALLER, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("position", [0, 2, CPU_CHUNK + 4])
def test_a_tensor_that_became_nan_has_moved_by_nan(dtype, position):
    before = torch.ones(CPU_CHUNK + 5, dtype=dtype)
    after = before.clone()
    after[position] = nan
    found = measure_change(before, after)
    assert found.moved
    assert isnan(found.change_l2)
    assert isnan(found.change_max)
    assert isnan(found.change_rel)
    assert found.initial_l2 == pytest.approx(sqrt(CPU_CHUNK + 5), rel=1e-6)


def test_equal_nan_bits_have_not_moved_and_other_nan_bits_have():
    quiet, other = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32).split(1)
    same = measure_change(quiet, quiet.clone())
    assert (same.moved, same.change_l2, same.change_max) == (False, 0.0, 0.0)
    assert isnan(same.initial_l2)
    assert measure_change(quiet, other).moved
    assert isnan(measure_change(quiet, other).change_l2)


def test_a_tensor_that_became_infinite_has_moved_by_infinity():
    assert measure_change(torch.ones(3), torch.tensor([1.0, 1.0, -inf])) == Change(
        sqrt(3), inf, inf, moved=True, moved_elements=1
    )


@pytest.mark.parametrize(
    "after", [torch.ones(3), torch.ones(2, 1), torch.ones(()), torch.ones(2, dtype=torch.float64)], ids=str
)
def test_a_tensor_of_another_shape_or_dtype_has_moved_and_has_no_norm_of_its_change(after):
    before = torch.tensor([3.0, 4.0])
    assert measure_change(before, after) == Change(5.0, None, None, moved=True, moved_elements=None)
    assert measure_change(before, after).change_rel is None


WITHOUT_ARITHMETIC = ["float4_e2m1fn_x2", "bits8", "uint1", "int4"]


@pytest.mark.parametrize("name", [name for name in WITHOUT_ARITHMETIC if hasattr(torch, name)])
def test_a_dtype_without_arithmetic_has_bits_and_no_norms(name):
    model = nn.Module()
    model.register_buffer("codes", torch.arange(20, dtype=torch.uint8).view(getattr(torch, name)))
    before = snapshot(model)
    assert measure_change(before.values["codes"], model.codes) == Change(None, None, None, moved=False, moved_elements=0)
    model.codes.view(torch.uint8)[3:5] = 77
    assert measure_change(before.values["codes"], model.codes) == Change(None, None, None, moved=True, moved_elements=2)


def quantised(*values: float, scale: float = 0.5) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will remove these tensors
        return torch.quantize_per_tensor(torch.tensor(values), scale, 0, torch.qint8)


def test_a_quantised_tensor_has_moved_if_its_integers_or_its_scale_differ():
    before = quantised(1.0, 2.0, 3.0)
    assert measure_change(before, before.clone()) == Change(None, None, None, moved=False, moved_elements=0)
    assert measure_change(before, quantised(1.0, 9.0, 3.0)) == Change(None, None, None, moved=True, moved_elements=1)
    assert measure_change(before, quantised(0.5, 1.0, 1.5, scale=0.25)).moved


# Elements


@pytest.mark.parametrize("count", [1, 7, CPU_CHUNK + 3])
@pytest.mark.parametrize(
    "dtype", [*FLOAT32_AND_SMALLER, torch.float64, torch.complex64, torch.complex128, torch.bool, torch.int64], ids=str
)
def test_the_elements_that_differ_by_a_bit_are_counted(dtype, count):
    before = noise(count).to(dtype)
    after = torch.where(noise(count, seed=1) > 0.5, noise(count, seed=2).to(dtype), before)
    assert measure_change(before, after).moved_elements == slow_moved_elements(before, after)


def test_updates_that_are_rounded_away_leave_most_elements_of_a_trained_bfloat16_tensor_as_they_were():
    weight = nn.Parameter(noise(4096, dtype=torch.bfloat16))
    before, optimizer = weight.detach().clone(), torch.optim.AdamW([weight], lr=1e-6, weight_decay=0)
    weight.grad = noise(4096, seed=1, dtype=torch.bfloat16)
    for _ in range(3):
        optimizer.step()
    found = measure_change(before, weight)
    assert found.moved
    assert 0 < found.moved_elements < 41  # more than 99% of the elements did not change


# Layouts

WIDE = noise(4, 6, 5, 3)
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "offset": lambda t: torch.cat([torch.zeros(1), t.reshape(-1)])[1:].view(t.shape),
}


@pytest.mark.parametrize("new", LAYOUTS)
@pytest.mark.parametrize("old", LAYOUTS)
def test_the_memory_layouts_do_not_change_the_result(old, new):
    moved = WIDE + 0.1 * noise(4, 6, 5, 3, seed=1)
    unchanged = measure_change(LAYOUTS[old](WIDE), LAYOUTS[new](WIDE))
    assert (unchanged.change_l2, unchanged.change_max, unchanged.moved) == (0.0, 0.0, False)
    assert_close(measure_change(LAYOUTS[old](WIDE), LAYOUTS[new](moved)), slow_norms(WIDE, moved), 1e-6)


def test_an_expanded_tensor_counts_each_of_its_elements():
    before, after = torch.tensor([3.0]).expand(4), torch.tensor([1.0]).expand(4)
    assert measure_change(before, after) == Change(6.0, 4.0, 2.0, moved=True, moved_elements=4)


# Snapshots


def test_a_snapshot_copies_every_parameter_and_buffer_and_training_does_not_change_it():
    model = MLP([3])
    model.norm.register_buffer("mask", torch.ones(2), persistent=False)
    before = snapshot(model)
    values = {name: entry.tensor.detach().clone() for name, entry in before.entries.items()}
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)
    assert list(before.values) == list(before.entries)
    assert "norm.mask" in before.values
    assert all(torch.equal(before.values[name], value) for name, value in values.items())
    assert all(measure_change(before.values[name], entry.tensor).moved for name, entry in before.entries.items())
    assert not any(value.requires_grad for value in before.values.values())


def test_a_snapshot_changes_neither_the_model_nor_the_random_state():
    model = MLP([3])
    state, flags = torch.get_rng_state(), [parameter.requires_grad for parameter in model.parameters()]
    versions = [tensor._version for tensor in model.state_dict(keep_vars=True).values()]
    snapshot(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [tensor._version for tensor in model.state_dict(keep_vars=True).values()] == versions


def peak_bytes(work) -> int:
    """The most memory that was allocated at once inside `work`, from the events of the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


@pytest.mark.long
@pytest.mark.parametrize(("layout", "value"), [("channels_last", 0.5), ("contiguous", 1e30)])  # huge: in float64
def test_snapshot_and_norms_take_at_most_a_twentieth_more_memory_than_the_parameters(layout, value):
    model = nn.ParameterList(LAYOUTS[layout](torch.full((512, 512, 3, 3), value)) for _ in range(5))  # resnet18's size
    found: list[Change] = []

    def measure() -> None:
        before = snapshot(model)
        for parameter in model:
            parameter.data.mul_(1.5)
        found.extend(measure_change(before.values[name], entry.tensor) for name, entry in before.entries.items())

    size = sum(parameter.nbytes for parameter in model)
    assert size <= peak_bytes(measure) <= 1.05 * size
    assert [change.moved for change in found] == [True] * 5

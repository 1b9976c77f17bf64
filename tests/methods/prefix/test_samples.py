"""A sample is recognised by its bits alone, and a batch that cannot be divided into samples is named with the reason."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch

from runner.methods.prefix.samples import first_difference, sample_keys, why_no_samples


def batch(**changed):
    """Return a batch of three samples as a mapping, with some parts replaced."""
    generator = torch.Generator().manual_seed(0)
    parts = {
        "x": torch.randn(3, 2, 4, generator=generator),
        "y": torch.tensor([1, 2, 0]),
        "on": torch.ones(3, dtype=torch.bool),
    }
    return {**parts, **changed}


def test_each_sample_has_a_key_of_its_own_which_is_the_same_when_it_is_made_again():
    keys = sample_keys(batch())
    assert len(set(keys)) == 3
    assert keys == sample_keys(batch())


def test_the_key_of_a_sample_does_not_depend_on_the_batch_the_index_or_the_order_in_memory():
    whole, order = batch(), [2, 0, 0]
    other = {name: part[order] for name, part in whole.items()}
    other["x"] = other["x"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not other["x"].is_contiguous()
    assert sample_keys(other) == [sample_keys(whole)[index] for index in order]


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_the_kind_of_mapping_does_not_change_the_key(kind):
    assert sample_keys(kind(batch())) == sample_keys(batch())


BITS = torch.tensor([[0x7FC00001], [0], [1]], dtype=torch.int32)
DIFFERENT = [
    (torch.zeros(3, 1), -torch.zeros(3, 1)),
    (BITS.view(torch.float32), (BITS + torch.tensor([[1], [0], [0]], dtype=torch.int32)).view(torch.float32)),
    (BITS, BITS.view(torch.float32)),
    (torch.zeros(3, 2, 3), torch.zeros(3, 3, 2)),
    (torch.zeros(3, 0), torch.zeros(3, 0, 1)),
    (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, 2)),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_bit_dtype_or_shape_gives_another_key(one, other):
    assert sample_keys(batch(x=one))[0] != sample_keys(batch(x=other))[0]


def test_the_same_tensors_under_other_names_give_another_key():
    x = torch.zeros(3, 1)
    assert len({tuple(sample_keys(each)) for each in ({"a": x, "b": x}, {"a": x, "c": x}, (x, x), [x, [x]])}) == 4


def test_a_target_that_changes_gives_another_key():
    one, other = sample_keys(batch()), sample_keys(batch(y=torch.tensor([1, 2, 1])))
    assert [first == second for first, second in zip(one, other, strict=True)] == [True, True, False]


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (batch(), ""),
        ((torch.zeros(2, 3), [torch.zeros(2), {"a": torch.zeros(2)}]), ""),
        (torch.zeros(2), ""),
        (batch(name="a"), "its part name is not a tensor with one row per sample"),
        (batch(more={"weight": torch.tensor(1.0)}), "its part more.weight is not a tensor with one row per sample"),
        (batch(weight=None), "its part weight is not a tensor with one row per sample"),
        ((torch.zeros(2, 3), torch.zeros(4)), "its part 1 has 4 rows, and its part 0 has 2"),
        ([torch.zeros(0, 3)], "it has no rows"),
        (torch.tensor(1), "it is not a tensor with one row per sample"),
        ({}, "it has no rows"),
        (torch.zeros(2, 3).to_sparse(), "it is not a tensor with one row per sample"),
    ],
)
def test_a_batch_without_samples_is_named_with_the_reason(whole, reason):
    assert why_no_samples(whole) == reason


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (batch(), None),
        (UserDict(batch()), None),
        (batch(y=torch.tensor([1, 2, 1])), "y"),
        (batch(x=batch()["x"].double()), "x"),
        (batch(x="a"), "x"),
        ({"x": batch()["x"]}, "y"),
        (batch(z=torch.zeros(3)), "z"),
    ],
)
def test_the_first_part_in_which_two_batches_differ_is_named(other, name):
    assert first_difference(batch(), other) == name

"""Batches of one form, and of another."""

from __future__ import annotations

import pytest
import torch

from runner.errors import ConfigError
from runner.training.data.structure import refuse_other_structure, structure_of

X = torch.zeros(2)
SAME = [
    ((X, X), (X[:1], X)),
    ({"a": X, "b": X}, {"b": X, "a": X}),
    (([X, X], [{"b": X}] * 2), ([X], [{"b": X}])),
    (((X, X), ({"b": X}, {"b": X})), ((X,), ({"b": X},))),
    ({"x": (X, X)}, {"x": (X,)}),
    (["a", "b"], ["a"]),
    ({"texts": ["a", "b"]}, {"texts": ["a"]}),
]
OTHER = [
    ((X, X), (X, X, X), r"batch 7 is \(a tensor, a tensor, a tensor\), the batches before were \(a tensor, a tensor\)"),
    ([X, X], [X, X, X], r"batch 7 is \(a tensor, a tensor, a tensor\)"),
    (
        (X, (X, "a")),
        (X, (X,)),
        r"batch 7 is \(a tensor, \[a tensor, ...\]\), the batches before were \(a tensor, \(a t",
    ),
    ((X, X), {"x": X}, r"batch 7 is {x: a tensor}, the batches before were \(a tensor, a tensor\); give one form"),
    ((X, X), (X, None), r"batch 7 is \(a tensor, NoneType\)"),
    ({"x": X}, {"y": X}, r"batch 7 is {y: a tensor}"),
    (X, (X,), r"batch 7 is \(a tensor\), the batches before were a tensor"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_batches_of_other_sizes_and_orders_have_the_same_form(one, other):
    assert structure_of(one) == structure_of(other)


@pytest.mark.parametrize(("first", "batch", "message"), OTHER)
def test_a_batch_of_another_form_is_refused(first, batch, message):
    with pytest.raises(ConfigError, match=f"^data: {message}"):
        refuse_other_structure(batch, 7, structure_of(first))

"""Samples that make no batch: which of them, which field, and what to do."""

from __future__ import annotations

import pytest
import torch

from runner.errors import ConfigError
from runner.training.data.loading import from_dataset

X = torch.zeros(3)
REFUSED = {
    "none": (
        [(X, 1), (None, 1)],
        r"sample 1, field 0 is of type NoneType; give data.transform or data.collate",
    ),
    "object": ([{"x": X}, {"x": object()}], r"sample 1, field x is of type object; give data.transform"),
    "whole": ([X, None], r"sample 1 is of type NoneType; give data.transform"),
    "nested": ([{"a": {"b": X}}, {"a": {"b": None}}], r"sample 1, field a\.b is of type NoneType"),
    "ragged": ([(X, 1), (X[:2], 1)], r"field 0 of sample 1 has shape \(2,\), of sample 0 shape \(3,\); give data.transform"),
    "text": ([(X, 1), ("a", 1)], r"field 0 of sample 1 has type str, of sample 0 shape \(3,\)"),
    "longer": (
        [(X, 1), (X, 1, 2)],
        r"sample 1 is \(a tensor, int, int\), sample 0 is \(a tensor, int\); give samples",
    ),
    "mapping": ([{"x": X}, {"y": X}], r"sample 1 is {y: a tensor}, sample 0 is {x: a tensor}; give samples of one form"),
    "lists": ([([[1], [2, 3]], 0), ([[1]], 0)], r"sample 1"),
}


@pytest.mark.parametrize(("samples", "message"), REFUSED.values(), ids=REFUSED)
def test_samples_that_make_no_batch_are_refused_with_their_numbers(samples, message):
    with pytest.raises(ConfigError, match=f"^data: {message}") as caught:
        list(from_dataset(samples, shuffle=False).read(0, 0, 1))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_own_collate_pads_samples_of_different_lengths():
    source = from_dataset([(X, 1), (X[:2], 1)], shuffle=False, collate=lambda samples: [len(x) for x, _ in samples])
    assert list(source.read(0, 0, 1)) == [[3, 2]]

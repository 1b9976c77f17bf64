"""Digests of bits: those of `hashlib`, whether the bits were seen before or not."""

from __future__ import annotations

import hashlib

import pytest
import torch

from runner.sharing.bits import LEAST, MOST, Digests

TENSORS = {
    "small": torch.arange(10.0),
    "empty": torch.empty(0),
    "a single value": torch.tensor(3),
    "large": torch.randn(100, 100),
    "transposed": torch.randn(100, 100).t(),
    "bfloat16": torch.randn(200, 100).bfloat16(),
    "complex": torch.randn(100, 100, dtype=torch.complex64).conj(),
    "bool": torch.randn(200, 100) > 0,
    "a view": torch.randn(20_001)[1:],
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_digest_is_that_of_hashlib_at_the_first_and_at_a_later_time(tensor):
    digests = Digests()
    bits = tensor.resolve_conj().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    assert {digests.of(tensor) for _ in range(3)} == {digests.of(tensor.clone())} == {hashlib.sha256(bits).digest()}


def test_one_other_bit_gives_another_digest_wherever_it_is():
    digests, tensor = Digests(), torch.randint(0, 255, (LEAST + 3,), dtype=torch.uint8)
    first = digests.of(tensor)
    for index in (*range(0, len(tensor), 97), len(tensor) - 1):
        tensor[index] ^= 1
        assert digests.of(tensor) == hashlib.sha256(tensor.numpy().tobytes()).digest() != first
        tensor[index] ^= 1
        assert digests.of(tensor) == first


def test_a_tensor_that_is_changed_in_place_later_does_not_change_what_is_known():
    digests, tensor = Digests(), torch.zeros(LEAST)
    first = digests.of(tensor)
    tensor[1] = 1
    assert digests.of(tensor) != first
    assert digests.of(torch.zeros(LEAST)) == first


def test_copies_take_no_more_than_the_limit():
    digests = Digests()
    for seed in range(5):
        digests.of(torch.full((MOST // 12,), float(seed)))
        assert digests.size == sum(bits.numel() for bits, _ in digests.known.values()) <= MOST
    digests.of(torch.zeros(MOST // 4 + 1))
    assert digests.size <= MOST

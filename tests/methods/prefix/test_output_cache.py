"""`OutputCache` returns the outputs of samples with the same bits and memory order, or nothing."""

from __future__ import annotations

import pytest
import torch

from runner.contract import ignore_note
from runner.methods.prefix.bypass import Recording, meta_placeholder
from runner.methods.prefix.output_cache import OutputCache, memory_dim_order
from runner.tensors import same_bits

KEYS = [b"a", b"b"]


def recording_of(output):
    return Recording(last={"hidden": meta_placeholder(output)}, dim_order=memory_dim_order(output))


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_outputs_come_back_with_their_bits_and_their_order_in_memory_at_each_call(limit):
    output = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    cache, recording = OutputCache(limit, None), recording_of(output)
    cache.saver("last", KEYS, recording, ignore_note)("last", {"hidden": output})
    load = cache.loader(KEYS[::-1], recording, ignore_note)
    for _ in range(2):
        loaded = load()
        assert same_bits(loaded, output.flip(0))
        assert loaded.stride() == output.stride()
        loaded.zero_()
    cache.close()
    assert cache.loader(KEYS, recording, ignore_note) is None


@pytest.mark.parametrize("other", [torch.zeros(2, 4), torch.zeros(2), (torch.zeros(2, 3), torch.zeros(2, 3)), None])
def test_an_output_of_another_shape_than_was_recorded_is_not_stored(other):
    cache, recording = OutputCache(100, None), recording_of(torch.zeros(2, 3))
    cache.saver("last", KEYS, recording, ignore_note)("last", other)
    assert not any(store.positions for store in cache.stores.values())
    assert cache.loader(KEYS, recording, ignore_note) is None


def test_outputs_of_modules_before_the_last_one_are_not_stored():
    cache, recording = OutputCache(100, None), recording_of(torch.zeros(2, 3))
    cache.saver("last", KEYS, recording, ignore_note)("first", torch.zeros(2, 3))
    assert cache.loader(KEYS, recording, ignore_note) is None

"""RowStore returns rows bit by bit, from memory and from its file, or raises an error."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from runner.methods.prefix.row_store import DamagedError, MemoryBudget, RowStore

TYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]


@pytest.mark.parametrize("limit", [0, 50, 100, 1 << 20])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 5), (0, 3)])
def test_rows_are_returned_bit_by_bit_in_any_order(limit, dtype, shape):
    store = RowStore(MemoryBudget(limit))
    rows = (torch.randn(30, *shape) * 100).to(dtype)
    for begin, end in ((0, 7), (7, 20), (20, 30)):
        store.put(range(100 + begin, 100 + end), rows[begin:end])
    for order in (list(range(30)), [29, 3, 3, 12, 0]):
        found = store.get([100 + place for place in order])
        assert torch.equal(found, rows[order])
        assert (found.dtype, found.shape) == (dtype, rows[order].shape)
    assert 129 in store
    assert 130 not in store
    store.close()


@pytest.mark.parametrize("limit", [0, 1000])
def test_nan_keeps_its_bits_and_the_returned_rows_are_a_copy(limit):
    store = RowStore(MemoryBudget(limit))
    bits = torch.tensor([[0x7FC00001, -0x3FFFFF], [0x7F800000, -0x80000000]], dtype=torch.int32)
    rows = bits.view(torch.float32)
    store.put([0, 1], rows)
    store.get([0, 1]).zero_()
    assert torch.equal(store.get([1, 0]).view(torch.int32), bits[[1, 0]])
    store.close()


def test_memory_is_limited_and_closing_removes_the_file(tmp_path):
    store = RowStore(MemoryBudget(160), str(tmp_path))
    store.put(range(4), torch.randn(4, 10))
    assert not list(tmp_path.iterdir())
    store.put(range(4, 40), torch.randn(36, 10))
    assert len(store.in_memory) == 4
    (file,) = tmp_path.rglob("prefix")
    assert file.stat().st_size == 36 * 40
    store.get([39, 1])
    store.close()
    store.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_a_damaged_file_raises_and_rows_in_memory_remain(damage, tmp_path):
    store = RowStore(MemoryBudget(40), str(tmp_path))
    rows = torch.randn(5, 10)
    store.put(range(5), rows)
    store.get([4])
    (file,) = tmp_path.rglob("prefix")
    if damage == "flipped":
        with file.open("r+b") as opened:
            opened.seek(50)
            opened.write(bytes([opened.read(1)[0] ^ 1]))
    else:
        os.truncate(file, 0 if damage == "empty" else 100)
    with pytest.raises(DamagedError):
        store.get([1, 2, 3, 4])
    store.forget_file()
    assert [number in store for number in range(5)] == [True, False, False, False, False]
    assert torch.equal(store.get([0]), rows[:1])
    store.put([3], rows[3:4])
    assert torch.equal(store.get([3, 0]), rows[[3, 0]])
    store.close()


def test_a_full_disk_raises_and_rows_written_before_remain(tmp_path):
    store, rows = RowStore(MemoryBudget(0), str(tmp_path)), torch.randn(100, 256)
    store.put(range(10), rows[:10])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024 + 512, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.put(range(10, 100), rows[10:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 10 not in store
    assert torch.equal(store.get([9, 2]), rows[[9, 2]])
    store.close()


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        RowStore(MemoryBudget(0), str(tmp_path / "nowhere")).put([0], torch.randn(1, 2))


def test_stores_of_several_shapes_share_one_limit_of_memory(tmp_path):
    budget = MemoryBudget(240)
    first, second = RowStore(budget, str(tmp_path)), RowStore(budget, str(tmp_path))
    rows, others = torch.randn(4, 10), torch.randn(5, 5)
    first.put(range(4), rows)
    second.put(range(5), others)
    assert (len(first.in_memory), len(second.in_memory), budget.left) == (4, 4, 0)
    assert torch.equal(second.get(range(5)), others)
    assert torch.equal(first.get(range(4)), rows)
    first.close()
    second.close()
    assert budget.left == 240
    assert not list(tmp_path.iterdir())

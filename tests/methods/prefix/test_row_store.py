"""A memory of rows: the same bits come back, from wherever they lie, or it says that they do not."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from runner.methods.prefix.row_store import DamagedError, RowStore

TYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]


@pytest.mark.parametrize("limit", [0, 50, 100, 1 << 20])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 5), (0, 3)])
def test_rows_come_back_bit_by_bit_in_any_order(limit, dtype, shape):
    memory = RowStore(limit)
    rows = (torch.randn(30, *shape) * 100).to(dtype)
    for begin, end in ((0, 7), (7, 20), (20, 30)):
        memory.put(range(100 + begin, 100 + end), rows[begin:end])
    for order in (list(range(30)), [29, 3, 3, 12, 0]):
        found = memory.get([100 + place for place in order])
        assert torch.equal(found, rows[order])
        assert (found.dtype, found.shape) == (dtype, rows[order].shape)
    assert 129 in memory
    assert 130 not in memory
    memory.close()


@pytest.mark.parametrize("limit", [0, 1000])
def test_nan_keeps_its_bits_and_what_is_given_is_a_copy(limit):
    memory = RowStore(limit)
    bits = torch.tensor([[0x7FC00001, -0x3FFFFF], [0x7F800000, -0x80000000]], dtype=torch.int32)
    rows = bits.view(torch.float32)
    memory.put([0, 1], rows)
    memory.get([0, 1]).zero_()
    assert torch.equal(memory.get([1, 0]).view(torch.int32), bits[[1, 0]])
    memory.close()


def test_memory_is_bounded_and_the_file_goes_when_it_is_closed(tmp_path):
    memory = RowStore(160, str(tmp_path))
    memory.put(range(4), torch.randn(4, 10))
    assert not list(tmp_path.iterdir())
    memory.put(range(4, 40), torch.randn(36, 10))
    assert len(memory.near) == 4
    (file,) = tmp_path.rglob("prefix")
    assert file.stat().st_size == 36 * 40
    memory.get([39, 1])
    memory.close()
    memory.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_a_file_with_other_bits_is_told_and_what_is_in_memory_stays(damage, tmp_path):
    memory = RowStore(40, str(tmp_path))
    rows = torch.randn(5, 10)
    memory.put(range(5), rows)
    memory.get([4])
    (file,) = tmp_path.rglob("prefix")
    if damage == "flipped":
        with file.open("r+b") as opened:
            opened.seek(50)
            opened.write(bytes([opened.read(1)[0] ^ 1]))
    else:
        os.truncate(file, 0 if damage == "empty" else 100)
    with pytest.raises(DamagedError):
        memory.get([1, 2, 3, 4])
    memory.forget_file()
    assert [number in memory for number in range(5)] == [True, False, False, False, False]
    assert torch.equal(memory.get([0]), rows[:1])
    memory.put([3], rows[3:4])
    assert torch.equal(memory.get([3, 0]), rows[[3, 0]])
    memory.close()


def test_a_full_disk_is_an_error_and_what_was_written_stays(tmp_path):
    memory, rows = RowStore(0, str(tmp_path)), torch.randn(100, 256)
    memory.put(range(10), rows[:10])
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024 + 512, was[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            memory.put(range(10, 100), rows[10:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert 10 not in memory
    assert torch.equal(memory.get([9, 2]), rows[[9, 2]])
    memory.close()


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        RowStore(0, str(tmp_path / "nowhere")).put([0], torch.randn(1, 2))

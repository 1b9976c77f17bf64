"""Rows that several processes store and read: each once, with the same bytes, whatever is damaged, full or killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy
import pytest

from runner.sharing.rows import DamagedError, FullError, SharedRows
from tests.sharing.locks import locked_elsewhere

LENGTH = 40


def key(number: int) -> bytes:
    """Return a key of 16 bytes."""
    return number.to_bytes(16, "little")


def row(number: int) -> numpy.ndarray:
    """Return the row of a key: bytes that depend on the number alone."""
    return numpy.random.default_rng(number).integers(0, 256, LENGTH, dtype=numpy.uint8)


def rows(numbers) -> numpy.ndarray:
    return numpy.stack([row(number) for number in numbers])


def store(folder: Path, limit: int = 10**6) -> SharedRows:
    return SharedRows(folder / "a", LENGTH, limit)


def add_shuffled(folder: Path, seed: int) -> None:
    """Store the rows 0 to 199 in an order of this process."""
    own = store(folder)
    for number in numpy.random.default_rng(seed).permutation(200).tolist():
        own.add([key(number)], rows([number]))


def add_for_ever(folder: Path) -> None:
    """Store row after row until the process is killed."""
    own = store(folder, 10**9)
    for number in range(10**9):
        own.add([key(number)], rows([number]))


def test_rows_come_back_with_the_same_bytes_in_the_order_of_the_keys(tmp_path):
    writer, reader = store(tmp_path), store(tmp_path)
    writer.add([key(1), key(2), key(3)], rows([1, 2, 3]))
    for own in (writer, reader):
        assert own.has([key(3), key(1)])
        assert numpy.array_equal(own.get([key(3), key(1), key(3)]), rows([3, 1, 3]))
        assert not own.has([key(1), key(4)])


def test_a_reader_sees_what_is_stored_later(tmp_path):
    writer, reader = store(tmp_path), store(tmp_path)
    assert not reader.has([key(1)])
    for number in range(1, 5):
        writer.add([key(number)], rows([number]))
        assert reader.has([key(number)])
        assert numpy.array_equal(reader.get([key(number)]), rows([number]))


def test_rows_of_no_bytes_are_rows(tmp_path):
    own = SharedRows(tmp_path / "a", 0, 10)
    own.add([key(1)], numpy.empty((1, 0), numpy.uint8))
    assert own.has([key(1)])
    assert own.get([key(1)]).shape == (1, 0)


def test_several_processes_store_each_row_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_shuffled, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    reader = store(tmp_path)
    assert reader.has([key(number) for number in range(200)])
    assert numpy.array_equal(reader.get([key(number) for number in range(200)]), rows(range(200)))
    assert (tmp_path / "a" / "rows").stat().st_size == 200 * LENGTH


def test_a_killed_writer_leaves_only_whole_rows_and_others_go_on(tmp_path):
    for attempt in range(4):
        process = multiprocessing.get_context("fork").Process(target=add_for_ever, args=(tmp_path,))
        process.start()
        time.sleep(0.05 + 0.03 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        reader = store(tmp_path)
        reader.has([key(10**9)])
        numbers = [int.from_bytes(each, "little") for each in reader.positions]
        assert len(numbers) > attempt
        assert numpy.array_equal(reader.get(list(reader.positions)), rows(numbers))
        reader.limit = 10**9
        reader.add([key(10**9 + attempt)], rows([10**9 + attempt]))
        assert store(tmp_path).has([key(10**9 + attempt)])


def test_what_a_killed_writer_left_behind_the_last_record_is_overwritten(tmp_path):
    writer = store(tmp_path)
    writer.add([key(1)], rows([1]))
    for name in ("rows", "index"):
        with open(tmp_path / "a" / name, "ab") as file:
            file.write(b"half")
    other = store(tmp_path)
    other.add([key(2)], rows([2]))
    reader = store(tmp_path)
    assert reader.has([key(1), key(2)])
    assert numpy.array_equal(reader.get([key(2), key(1)]), rows([2, 1]))


@pytest.mark.parametrize("size", [0, 1, LENGTH, 2 * LENGTH - 1])
def test_a_file_that_was_cut_is_not_read(size, tmp_path):
    writer = store(tmp_path)
    writer.add([key(1), key(2)], rows([1, 2]))
    os.truncate(tmp_path / "a" / "rows", size)
    with pytest.raises(DamagedError, match="shorter"):
        writer.get([key(1), key(2)])
    assert not writer.has([key(2)])


def test_a_row_with_another_bit_is_not_read_and_the_others_are(tmp_path):
    writer = store(tmp_path)
    writer.add([key(1), key(2)], rows([1, 2]))
    data = bytearray((tmp_path / "a" / "rows").read_bytes())
    data[LENGTH + 3] ^= 1
    (tmp_path / "a" / "rows").write_bytes(data)
    reader = store(tmp_path)
    assert reader.has([key(1), key(2)])
    with pytest.raises(DamagedError, match="checksum"):
        reader.get([key(1), key(2)])
    assert not reader.has([key(2)])
    assert numpy.array_equal(reader.get([key(1)]), rows([1]))


def test_a_damaged_index_ends_before_the_damage(tmp_path):
    writer = store(tmp_path)
    writer.add([key(1), key(2), key(3)], rows([1, 2, 3]))
    data = bytearray((tmp_path / "a" / "index").read_bytes())
    data[24 + 5] ^= 1
    (tmp_path / "a" / "index").write_bytes(data)
    reader = store(tmp_path)
    assert [reader.has([key(number)]) for number in (1, 2, 3)] == [True, False, False]
    reader.add([key(2)], rows([2]))
    assert numpy.array_equal(reader.get([key(1), key(2)]), rows([1, 2]))


def test_rows_beyond_the_limit_of_all_folders_are_refused(tmp_path):
    first, second = SharedRows(tmp_path / "a", LENGTH, 3 * LENGTH), SharedRows(tmp_path / "b", LENGTH, 3 * LENGTH)
    first.add([key(1), key(2)], rows([1, 2]))
    with pytest.raises(FullError, match="is reached"):
        second.add([key(1), key(2)], rows([1, 2]))
    second.add([key(1)], rows([1]))
    first.add([key(1)], rows([1]))  # it is there already
    with pytest.raises(FullError):
        first.add([key(3)], rows([3]))
    assert not first.has([key(3)])


def test_a_lock_that_another_process_keeps_is_an_error_of_the_file_not_the_end_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("runner.sharing.rows.LONGEST_WAIT", 0.2)
    with locked_elsewhere(tmp_path / ".lock"), pytest.raises(OSError, match="another process has locked") as caught:
        SharedRows(tmp_path / "a", LENGTH, 3 * LENGTH).add([key(1)], rows([1]))
    assert not isinstance(caught.value, TimeoutError)

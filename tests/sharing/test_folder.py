"""A value is computed once for all processes of a sweep; a file that cannot be read or written only costs time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from runner.sharing.folder import SharedFolder, digest_of
from tests.sharing.locks import locked_elsewhere


def compute_with_a_mark(folder: Path, key: str) -> dict:
    """Return a value from the folder `shared`; if this process computes it, leave a file with its process id."""

    def compute() -> dict:
        (folder / f"computed-{key}-{os.getpid()}").touch()
        return {"key": key, "numbers": (0.1, float("1e-320"), None)}

    return SharedFolder(folder / "shared").once("numbers", key, compute)


def test_a_value_is_computed_once_by_several_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        values = pool.starmap(compute_with_a_mark, [(tmp_path, key) for key in ("a", "b")] * 20)
    assert values[0] == {"key": "a", "numbers": [0.1, 1e-320, None]}
    assert values == [values[0], values[1]] * 20
    assert sorted(path.name.split("-")[1] for path in tmp_path.glob("computed-*")) == ["a", "b"]


def test_the_process_that_computes_a_value_gets_what_the_others_read(tmp_path):
    first, second = (SharedFolder(tmp_path).once("x", "key", lambda: (1, {2: 0.5})) for _ in range(2))
    assert first == second == [1, {"2": 0.5}]


@pytest.mark.parametrize("damage", [b"", b"{}", b"00000000\n[7]", b"\xff\xfe\n", b'd202ef8d\n{"a": '])
def test_a_damaged_file_is_written_again(damage, tmp_path):
    shared = SharedFolder(tmp_path)
    shared.once("x", "key", lambda: [1])
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage)
    assert shared.once("x", "key", lambda: [2]) == [2]
    assert shared.once("x", "key", lambda: [3]) == [2]


def test_where_nothing_can_be_written_each_value_is_computed(tmp_path):
    (tmp_path / "file").touch()
    shared = SharedFolder(tmp_path / "file" / "shared")
    assert [shared.once("x", "key", lambda number=number: number) for number in (1, 2)] == [1, 2]


def test_what_the_computation_raises_is_passed_on_and_nothing_is_stored(tmp_path):
    shared = SharedFolder(tmp_path)
    with pytest.raises(ZeroDivisionError):
        shared.once("x", "key", lambda: 1 // 0)
    assert not list(tmp_path.rglob("*.json"))
    assert shared.once("x", "key", lambda: 1) == 1


def test_no_file_under_another_name_stays(tmp_path):
    SharedFolder(tmp_path).once("x", "key", lambda: 1)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".lock"}


def test_texts_that_join_to_the_same_have_other_digests():
    assert len({digest_of("ab", "c"), digest_of("a", "bc"), digest_of("abc"), digest_of("abc", "")}) == 4


@pytest.mark.parametrize("end", ["alarm", "wait"])
def test_waiting_for_a_lock_ends_with_the_run_and_otherwise_after_a_while(end, tmp_path, monkeypatch):
    monkeypatch.setattr("runner.sharing.folder.LONGEST_WAIT", 30 if end == "alarm" else 0.2)
    shared, lock = SharedFolder(tmp_path), tmp_path / "x" / f"{digest_of('key')}.lock"
    lock.parent.mkdir()
    with locked_elsewhere(lock):
        if end == "wait":
            assert shared.once("x", "key", lambda: 3) == 3
            return
        before = signal.signal(signal.SIGUSR1, end_the_run)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(TimeoutError, match="the run is over"):
            shared.once("x", "key", lambda: 3)
        signal.signal(signal.SIGUSR1, before)


def end_the_run(*_) -> None:
    raise TimeoutError("the run is over")

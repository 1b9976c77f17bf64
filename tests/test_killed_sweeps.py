"""A sweep that was killed can be resumed: finished runs are kept, the others are run, and the files are the same."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from runner.contract import CHANGE_COLUMNS
from tests.conftest import read_table

GRID = ("model=mlp", "batches=3", "threads=1", "method=requires_grad,zero_lr,none", "freeze=head,bias", "seed=0,1")
RUNS = 12
SWEEP = Path("sweep")
TABLES = ("comparison.csv", "changes.csv", "failures.csv", "heatmap.svg", "heatmap.png", "report.html")


@pytest.fixture(scope="module")
def start_runner():
    """Return a function that starts the command line in a new process and returns the process.

    The process is forked from one that has only imported torch, which is faster than a new interpreter. `file_size_limit`
    is the largest file that it can write, in bytes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runner.experiment", "torch._dynamo", "runner.report.files"])

    def start(*arguments: str, file_size_limit: int | None = None) -> multiprocessing.process.BaseProcess:
        """Start the command line in the current folder, and return its process."""
        process = context.Process(target=run_command_line, args=(arguments, os.getcwd(), file_size_limit))
        process.start()
        return process

    return start


def run_command_line(arguments: tuple[str, ...], folder: str, file_size_limit: int | None) -> None:
    """Run the command line in this process, in `folder`; its output goes to the file `output.txt` there."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if file_size_limit is not None:  # writing fails at the limit, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    from runner.__main__ import main

    sys.argv = ["runner", *arguments]
    sys.exit(main())


def wait_for_exit_code(process) -> int:
    """Wait at most two minutes for the process to end, and return its exit code."""
    process.join(120)
    return process.exitcode


def finished_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the finished runs' files by path; asserts that no file in the sweep's folder is incomplete."""
    contents = {}
    for path in sorted(folder.glob("*/run.json")):
        if json.loads(path.read_text())["status"] == "finished":
            contents |= {
                str(file.relative_to(folder)): file.read_bytes() for file in path.parent.iterdir() if file.is_file()
            }
            rows = read_table(path.parent / "changes.csv")
            assert len(rows) == 12
            assert tuple(rows[-1]) == CHANGE_COLUMNS
            assert None not in rows[-1].values()
            assert len((path.parent / "steps.csv").read_text().splitlines()) == 4
    for name, end in {"report.html": b"</html>", "heatmap.svg": b"</svg>", "heatmap.png": b"IEND\xaeB`\x82"}.items():
        assert not (folder / name).exists() or (folder / name).read_bytes().rstrip().endswith(end)
    return contents


def without_times(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Return the same files without logs and reports, and `steps.csv` without the column `seconds`."""

    def without_seconds(name: str, data: bytes) -> bytes:
        """Return the content of a file, without the column `seconds` if it is `steps.csv`."""
        if not name.endswith("steps.csv"):
            return data
        rows = csv.DictReader(data.decode().splitlines())
        return repr([{key: value for key, value in row.items() if key != "seconds"} for row in rows]).encode()

    return {
        name: without_seconds(name, data) for name, data in contents.items() if not name.endswith((".log", "report.html"))
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, start_runner):
    """Run a sweep to its end; return the files of its runs, its own files, and the seconds that it took."""
    folder, previous_folder = tmp_path_factory.mktemp("it's an ünïnterrupted sweep"), Path.cwd()
    os.chdir(folder)
    start = time.monotonic()
    assert wait_for_exit_code(start_runner("-m", *GRID, "hydra.sweep.dir=sweep")) == 0
    seconds = time.monotonic() - start
    os.chdir(previous_folder)
    contents = finished_files(folder / SWEEP)
    assert len(contents) == 4 * RUNS
    return without_times(contents), {name: (folder / SWEEP / name).read_bytes() for name in TABLES}, seconds


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_a_sweep_killed_four_times_and_resumed_has_the_bytes_of_an_uninterrupted_one(seed, start_runner, uninterrupted):
    runs, tables, seconds = uninterrupted
    generator = random.Random(seed)
    finished: dict[str, bytes] = {}
    for number in range(4):
        sweep = start_runner("-m", *GRID, "hydra.sweep.dir=sweep")
        # The first three times runs are in progress; the last time the tables may be being written.
        time.sleep(seconds * (generator.uniform(0.1, 0.5) if number < 3 else generator.uniform(0.5, 1)))
        sweep.kill()
        sweep.join()
        current = finished_files(SWEEP) if SWEEP.exists() else {}
        assert {name: current.get(name) for name in finished} == finished  # no finished run was lost or run again
        finished = current
    assert wait_for_exit_code(start_runner("-m", *GRID, "hydra.sweep.dir=sweep")) == 0
    current = finished_files(SWEEP)
    assert {name: current[name] for name in finished} == finished
    assert without_times(current) == runs
    assert {name: (SWEEP / name).read_bytes() for name in TABLES} == tables
    assert not [path for path in SWEEP.rglob(".*") if path.name not in (".hydra",) and path.is_file()]


@pytest.mark.long
def test_a_full_disk_leaves_no_incomplete_file_and_a_resumed_sweep_is_complete(start_runner, uninterrupted):
    runs, tables, _ = uninterrupted
    # Bytes; writing fails for the file of the grid, the configs, the tables, the records and the figures respectively.
    for limit in (0, 400, 1_500, 2_500, 10_000):
        assert wait_for_exit_code(start_runner("-m", *GRID, "hydra.sweep.dir=sweep", file_size_limit=limit)) in (1, 2)
        if SWEEP.exists():
            finished_files(SWEEP)
    assert "Traceback" not in Path("output.txt").read_text()
    assert wait_for_exit_code(start_runner("-m", *GRID, "hydra.sweep.dir=sweep")) == 0
    assert without_times(finished_files(SWEEP)) == runs
    assert {name: (SWEEP / name).read_bytes() for name in TABLES} == tables


@pytest.mark.long
def test_sigterm_ends_a_sweep_with_code_130_and_a_table_and_resume_last_completes_it(start_runner):
    grid = ("model=mlp", "threads=1", "batches=300", "seed=range(6)")
    sweep = start_runner("-m", *grid)
    deadline = time.monotonic() + 60
    while not list(Path().glob("outputs/sweeps/*/*/*/run.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(sweep.pid, signal.SIGTERM)
    assert wait_for_exit_code(sweep) == 130
    (table,) = Path().glob("outputs/sweeps/*/*/comparison.csv")
    before = [row["status"] for row in read_table(table)]
    assert set(before) <= {"finished", "interrupted"}
    assert len(before) < 6
    assert wait_for_exit_code(start_runner("-m", *grid, "resume=last")) == 0
    assert len(list(Path().glob("outputs/sweeps/*/*"))) == 1
    assert [row["status"] for row in read_table(table)] == ["finished"] * 6
    assert not [path for path in table.parent.rglob("*.json") if "resume" in path.read_text()]
    assert not [name for name in TABLES if b"resume" in (table.parent / name).read_bytes()]

"""A sweep outlives whatever ends it: what is finished is kept, what is not is run, and no byte tells."""

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
TORN = ("*.csv", "*.json", "*.html", "*.svg", "*.png")


@pytest.fixture(scope="module")
def forks():
    """Starts `python -m runner ARGUMENTS...` as a fork of a process that has imported torch, and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runner.experiment", "torch._dynamo", "runner.report.files"])

    def start(*arguments: str, limit: int | None = None) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=call, args=(arguments, os.getcwd(), limit))
        process.start()
        return process

    return start


def call(arguments: tuple[str, ...], folder: str, limit: int | None) -> None:
    """The command line, in this process; `limit` is the largest size of a file, as on a disk that is full."""
    os.chdir(folder)
    out = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from runner.__main__ import main

    sys.argv = ["runner", *arguments]
    sys.exit(main())


def finish(process) -> int:
    process.join(120)
    return process.exitcode


def whole(folder: Path) -> dict[str, bytes]:
    """The files of the finished runs below a sweep's folder; asserts that no file stands torn under a final name."""
    found = {}
    for path in sorted(folder.glob("*/run.json")):
        if json.loads(path.read_text())["status"] == "finished":
            found |= {str(file.relative_to(folder)): file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
            rows = read_table(path.parent / "changes.csv")
            assert len(rows) == 12
            assert tuple(rows[-1]) == CHANGE_COLUMNS
            assert None not in rows[-1].values()
            assert len((path.parent / "steps.csv").read_text().splitlines()) == 4
    for name, end in {"report.html": b"</html>", "heatmap.svg": b"</svg>", "heatmap.png": b"IEND\xaeB`\x82"}.items():
        assert not (folder / name).exists() or (folder / name).read_bytes().rstrip().endswith(end)
    return found


def without_times(found: dict[str, bytes]) -> dict[str, bytes]:
    """The same without logs, and without the seconds of steps.csv."""

    def stripped(name: str, data: bytes) -> bytes:
        if not name.endswith("steps.csv"):
            return data
        rows = csv.DictReader(data.decode().splitlines())
        return repr([{key: value for key, value in row.items() if key != "seconds"} for row in rows]).encode()

    return {name: stripped(name, data) for name, data in found.items() if not name.endswith((".log", "report.html"))}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, forks):
    """A sweep that nothing ended, its files, and the seconds that it took."""
    folder, here = tmp_path_factory.mktemp("uninterrupted"), Path.cwd()
    os.chdir(folder)
    start = time.monotonic()
    assert finish(forks("-m", *GRID, "hydra.sweep.dir=sweep")) == 0
    took = time.monotonic() - start
    os.chdir(here)
    found = whole(folder / SWEEP)
    assert len(found) == 4 * RUNS
    return without_times(found), {name: (folder / SWEEP / name).read_bytes() for name in TABLES}, took


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_a_sweep_killed_at_four_moments_ends_with_the_bytes_of_one_that_was_not(seed, forks, uninterrupted):
    runs, tables, took = uninterrupted
    moments = random.Random(seed)
    kept: dict[str, bytes] = {}
    for number in range(4):
        sweep = forks("-m", *GRID, "hydra.sweep.dir=sweep")
        # Most of the moments fall where runs go on; one in four where the tables are written.
        time.sleep(took * (moments.uniform(0.1, 0.5) if number < 3 else moments.uniform(0.5, 1)))
        sweep.kill()
        sweep.join()
        now = whole(SWEEP) if SWEEP.exists() else {}
        assert {name: now.get(name) for name in kept} == kept  # no finished run was lost, or run again
        kept = now
    assert finish(forks("-m", *GRID, "hydra.sweep.dir=sweep")) == 0
    now = whole(SWEEP)
    assert {name: now[name] for name in kept} == kept
    assert without_times(now) == runs
    assert {name: (SWEEP / name).read_bytes() for name in TABLES} == tables
    assert not [path for path in SWEEP.rglob(".*") if path.name not in (".hydra",) and path.is_file()]


@pytest.mark.long
def test_a_full_disk_tears_no_file_and_what_it_cost_is_run_again(forks, uninterrupted):
    runs, tables, _ = uninterrupted
    for limit in (0, 400, 1_500, 2_500, 10_000):  # at the grid's file, the configs, the tables, the records, the pictures
        assert finish(forks("-m", *GRID, "hydra.sweep.dir=sweep", limit=limit)) in (1, 2)
        if SWEEP.exists():
            whole(SWEEP)
    assert "Traceback" not in Path("said").read_text()
    assert finish(forks("-m", *GRID, "hydra.sweep.dir=sweep")) == 0
    assert without_times(whole(SWEEP)) == runs
    assert {name: (SWEEP / name).read_bytes() for name in TABLES} == tables


def test_sigterm_ends_a_sweep_with_its_table_and_130_and_resume_last_goes_on(forks):
    grid = ("model=mlp", "threads=1", "batches=300", "seed=range(6)")
    sweep = forks("-m", *grid)
    until = time.monotonic() + 60
    while not list(Path().glob("outputs/sweeps/*/*/*/run.json")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(sweep.pid, signal.SIGTERM)
    assert finish(sweep) == 130
    (table,) = Path().glob("outputs/sweeps/*/*/comparison.csv")
    before = [row["status"] for row in read_table(table)]
    assert set(before) <= {"finished", "interrupted"}
    assert len(before) < 6
    assert finish(forks("-m", *grid, "resume=last")) == 0
    assert len(list(Path().glob("outputs/sweeps/*/*"))) == 1
    assert [row["status"] for row in read_table(table)] == ["finished"] * 6
    assert not [path for path in table.parent.rglob("*.json") if "resume" in path.read_text()]
    assert not [name for name in TABLES if b"resume" in (table.parent / name).read_bytes()]

"""The live view: the page of a sweep is written while it runs, reads no ended run again, and never ends the sweep."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runner.report.files import write_sweep_files
from runner.sweep.live import LiveReport
from tests.conftest import ROOT, read_table
from tests.run_folders import LEAKED_ROWS, write_run

SWEEP = Path("sweep")
PAGE = SWEEP / "report.html"
GRID = ("-m", "model=mlp", "method=requires_grad,zero_lr,none", "freeze=head", "seed=0,1", "batches=2", "threads=1")
RELOADS = '<meta http-equiv="refresh"'
opened: list[tuple[str, Path]] = []  # (name of the thread, path) of each file of a run that this process reads


def note_open(event: str, arguments: tuple) -> None:
    """An audit hook: note each file of a run that is opened to be read."""
    if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str) and "r" in arguments[1]:
        path = Path(arguments[0])
        if path.name in ("run.json", "changes.csv", "steps.csv", "config.yaml") and path.parent.name != "sweep":
            opened.append((threading.current_thread().name, path))


@pytest.fixture
def reads():
    """Return a list of (name of the thread, path) that grows with each file of a run that is read."""
    if not hasattr(sys, "_live_test_hook"):
        sys.addaudithook(note_open)
        sys._live_test_hook = True
    opened.clear()
    return opened


def test_no_file_of_a_run_that_has_ended_is_read_again(reads):
    write_run(SWEEP, "zero_lr", "seed=0")
    live = LiveReport(SWEEP, 1)
    live.write()
    assert {path.name for _, path in reads} >= {"run.json", "changes.csv", "steps.csv", "config.yaml"}
    reads.clear()
    new = write_run(SWEEP, "none", "seed=0", rows=LEAKED_ROWS)
    live.write()
    assert {path.parent.name if path.parent.name != ".hydra" else path.parent.parent.name for _, path in reads} == {new.name}
    assert len(reads) == len(set(reads))
    assert "2 runs: 2 finished" in PAGE.read_text()


def test_a_run_that_was_read_in_progress_is_read_again_when_it_has_ended():
    folder = write_run(SWEEP)
    record = (folder / "run.json").read_text()
    (folder / "run.json").unlink()
    (folder / ".running").touch()
    live = LiveReport(SWEEP, 1)
    live.write()
    assert "1 run: 1 running" in PAGE.read_text()
    assert live.kept == {}
    (folder / "run.json").write_text(record)
    live.write()
    assert "1 run: 1 finished" in PAGE.read_text()
    assert set(live.kept) == {folder}


@pytest.mark.parametrize("status", ["failed", "interrupted", "skipped"])
def test_a_run_that_did_not_finish_is_read_again_since_a_resumed_sweep_carries_it_out_again(status):
    first = write_run(SWEEP, "zero_lr", name="run", status=status, reason="boom", verdict=None, rows=(), losses=())
    live = LiveReport(SWEEP, 1)
    live.write()
    shutil.rmtree(first)
    write_run(SWEEP, "zero_lr", name="run")
    write_sweep_files(SWEEP, live.kept)
    (row,) = read_table(SWEEP / "comparison.csv")
    assert (row["status"], row["reason"], row["outcome"]) == ("finished", "", "held")
    assert "boom" not in PAGE.read_text()


def test_a_folder_that_hydra_made_for_a_run_that_has_not_begun_is_not_a_failure():
    begun, waiting = write_run(SWEEP, "zero_lr"), write_run(SWEEP, "none")
    (waiting / "run.json").unlink()
    (SWEEP / "sweep.json").write_text(json.dumps({"command": "x", "runs": [begun.name, waiting.name, "third"]}))
    LiveReport(SWEEP, 1).write()
    assert "3 runs: 1 finished, 2 not begun" in PAGE.read_text()
    write_sweep_files(SWEEP)
    assert "2 of 3 runs are not done: 1 failed, 1 not begun" in PAGE.read_text()


@pytest.mark.parametrize(("every", "seconds"), [(0.2, 1), (5, 5), (7.5, 8)])
def test_the_page_of_a_running_sweep_loads_itself_again_after_whole_seconds(every, seconds):
    write_run(SWEEP)
    LiveReport(SWEEP, every).write()
    assert f'{RELOADS} content="{seconds}">' in PAGE.read_text()
    write_sweep_files(SWEEP)
    assert RELOADS not in PAGE.read_text()


def test_an_error_is_one_line_printed_once_and_raises_nothing(capsys):
    write_run(SWEEP)
    live = LiveReport(SWEEP, 1)
    PAGE.mkdir()  # cannot be replaced by a file
    for _ in range(3):
        live.write()
    (line,) = capsys.readouterr().err.splitlines()
    assert "report.html" in line
    PAGE.rmdir()
    live.write()
    assert PAGE.is_file()


def test_a_folder_that_cannot_be_read_is_one_line_printed_once(capsys):
    live = LiveReport(Path("no such folder"), 1)
    live.write()
    live.write()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("freeze-runner: the page of the running sweep cannot be written: FileNotFoundError")


def test_without_report_every_there_is_no_page_before_the_end_and_no_thread():
    live = LiveReport(SWEEP, None)
    live.start()
    assert not PAGE.exists()
    assert "live report" not in {thread.name for thread in threading.enumerate()}
    live.stop()


def test_what_changes_is_written_until_the_report_is_stopped():
    write_run(SWEEP, "zero_lr")
    live = LiveReport(SWEEP, 0.01)
    live.start()
    write_run(SWEEP, "none", rows=LEAKED_ROWS)
    deadline = time.monotonic() + 60
    while "2 runs" not in PAGE.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    live.stop()
    assert "2 runs: 2 finished" in PAGE.read_text()
    assert "live report" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("value", ["0", "nan", "soon"])
def test_a_wrong_number_of_seconds_is_refused(cli, value):
    code, out, err = cli(*GRID, f"report.every={value}")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "report.every" in err
    assert not Path("outputs").exists()


@pytest.mark.long
def test_a_sweep_writes_the_names_of_its_runs_and_the_command_that_goes_on(cli):
    assert cli(*GRID, "hydra.sweep.dir=sweep")[0] == 0
    plan = json.loads((SWEEP / "sweep.json").read_text())
    assert sorted(plan["runs"]) == sorted(path.parent.name for path in SWEEP.glob("*/run.json"))
    assert plan["command"] == f"python -m runner {shlex.join(GRID)} hydra.sweep.dir=sweep"


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_the_first_page_of_a_resumed_sweep_shows_no_run_of_an_earlier_start(cli, status, monkeypatch):
    arguments = ("-m", "model=mlp", "method=requires_grad,zero_lr", "batches=2", "cost=off", "hydra.sweep.dir=sweep")
    assert cli(*arguments)[0] == 0
    (folder,) = SWEEP.glob("zero_lr__*")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": status, "reason": "boom"}))
    pages = []
    write = LiveReport.write

    def kept(live: LiveReport) -> None:
        write(live)
        pages.append(PAGE.read_text())

    monkeypatch.setattr(LiveReport, "write", kept)
    assert cli(*arguments, "report.every=60")[0] == 0
    assert "2 runs: 1 finished, 1 not begun" in pages[0]
    assert "boom" not in pages[0]
    assert "2 runs: 2 finished" in PAGE.read_text()


@pytest.mark.long
def test_a_real_sweep_reads_each_ended_run_once_and_its_last_page_is_that_without_the_live_view(cli, reads):
    for folder, live in (("one", ["report.every=0.05"]), ("two", [])):
        Path(folder).mkdir()
        code, out, err = cli(*GRID, f"hydra.sweep.dir={folder}/sweep", "cost=count", *live)
        assert (code, err) == (0, "")
        assert ("page, while the sweep runs: " in out) == bool(live)
        if live:
            of_thread = [path for name, path in reads if name == "live report" and path.suffix == ".csv"]
            assert of_thread
            assert len(of_thread) == len(set(of_thread))
    one, two = Path("one/sweep"), Path("two/sweep")
    shutil.rmtree(two / ".hydra", ignore_errors=True)
    for name in ("report.html", "comparison.csv", "comparison.json", "changes.csv", "failures.csv", "heatmap.svg"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.long
def test_a_killed_sweep_leaves_a_page_that_counts_what_is_not_done_and_the_command_goes_on():
    command = [sys.executable, "-m", "runner", *GRID, "hydra.sweep.dir=sweep", "report.every=0.05"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (list(SWEEP.glob("*/run.json")) and PAGE.exists()) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    left = 6 - len(list(SWEEP.glob("*/run.json")))
    assert left
    page = PAGE.read_text()
    assert RELOADS in page
    assert "of 6 runs are not done" in page
    done = subprocess.run(
        [sys.executable, "-m", "runner.report", "sweep", "-o", "page.html"], env=environment, check=True, capture_output=True
    )
    assert done.stderr == b""
    assert f"{left} of 6 runs {'is' if left == 1 else 'are'} not done" in Path("page.html").read_text()
    arguments = shlex.split(json.loads((SWEEP / "sweep.json").read_text())["command"])[1:]
    subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
    assert {row["status"] for row in read_table(SWEEP / "comparison.csv")} == {"finished"}
    assert RELOADS not in PAGE.read_text()
    assert "not done" not in PAGE.read_text()

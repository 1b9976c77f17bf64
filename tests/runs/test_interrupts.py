"""End a run early: by its timeout, between or within steps, and by an interrupt."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runner.runs.interrupts import delay_interrupts, handle_interrupts, time_limit
from tests.conftest import ROOT


def test_after_the_timeout_the_check_between_steps_raises(tmp_path):
    def check_late() -> None:  # in another thread, because in the main thread a signal raises the error at once
        with time_limit(0.01, tmp_path / "log") as check:
            time.sleep(0.02)
            with pytest.raises(TimeoutError, match=r"timeout=0\.01 seconds"):
                check()
            checked.append(True)

    checked = []
    thread = threading.Thread(target=check_late)
    thread.start()
    thread.join()
    assert (checked, os.listdir(tmp_path)) == ([True], [])


@pytest.fixture
def _no_alarm_handler():
    """Remove the handler of SIGALRM inside a test; pytest-timeout sets one."""
    handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.usefixtures("_no_alarm_handler")
@pytest.mark.parametrize("hang", [lambda: time.sleep(60), threading.Event().wait, ctypes.PyDLL(None).pause])
def test_the_timeout_ends_what_sleeps_or_waits(hang, tmp_path):
    with pytest.raises(TimeoutError, match=r"timeout=0\.01 seconds"), time_limit(0.01, tmp_path / "log", on_kill=print):
        hang()
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_without_a_timeout_or_before_it_nothing_happens(tmp_path):
    for seconds in (None, 60):
        with time_limit(seconds, tmp_path / "log", on_kill=print) as check:
            check()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}); time.sleep(60)",
            "the run was not done after timeout=0.2 seconds, and no step ended: its process was ended",
        ),
        # It holds the interpreter lock and looks for no signal: no Python code can run.
        ("collections.deque(itertools.repeat(0), maxlen=0)", None),
    ],
    ids=["no signal ends it", "holds the interpreter lock"],
)
def test_a_step_that_hangs_is_ended_with_its_process(tmp_path, body, reason):
    done = run_with_time_limit(body, "Path('reason').write_text")
    assert done.returncode == 1
    assert "line 6 in <module>" in Path("log").read_text()  # the stack trace shows where it hung
    assert (Path("reason").read_text() if Path("reason").exists() else None) == reason


def run_with_time_limit(body: str, end: str) -> subprocess.CompletedProcess[bytes]:
    """Run the Python statements `body` in a new process with a time limit, which ends the process by `end(reason)`."""
    code = (
        "import collections, itertools, signal, time; from pathlib import Path\n"
        "from runner.runs import interrupts; from runner.runs.exits import end_once\n"
        "interrupts.GRACE_SECONDS, log = 0.3, Path('log')\n"
        f"with end_once({end}, log) as end:\n"
        "  with interrupts.time_limit(0.2, log, end):\n"
        f"    {body}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)


@pytest.mark.long
@pytest.mark.parametrize("sleeps_on", [True, False])
def test_what_ends_a_step_that_hangs_may_take_longer_than_the_step_had_left(sleeps_on):
    body = f"signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGALRM}}); time.sleep({60 if sleeps_on else 0.7})"
    done = run_with_time_limit(body, "lambda reason: time.sleep(1.5) or Path('reason').write_text(reason)")
    assert (done.returncode, Path("reason").exists()) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_ends_the_training_and_later_ones_do_not_end_the_writing(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    written = []
    with handle_interrupts(signal.default_int_handler):
        with delay_interrupts() as raise_interrupts:
            try:
                with raise_interrupts():
                    signal.raise_signal(number)
                    time.sleep(1)
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                written.append("the tables")
        written.append("after the block")
    assert len(written) == 2
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_while_files_are_written_is_raised_afterwards():
    written = []
    with pytest.raises(KeyboardInterrupt), handle_interrupts(signal.default_int_handler):  # noqa: PT012
        with delay_interrupts():
            signal.raise_signal(signal.SIGTERM)
            written.append("the record")
        written.append("after the block")
    assert written == ["the record"]


def test_a_signal_handler_of_another_library_is_kept():
    original = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with handle_interrupts(signal.default_int_handler), delay_interrupts():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, original)


def test_an_interrupt_before_the_training_is_raised_when_it_would_begin():
    with delay_interrupts() as raise_interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), raise_interrupts():
            pass


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.1, 1, 2])
def test_an_interrupt_while_a_command_starts_exits_with_130_and_no_traceback(number, seconds):
    code = (  # the first line on stdout says that `main` has set its handler for interrupts
        "import runner.__main__ as command; run_hydra = command.run_hydra\n"
        "command.run_hydra = lambda: print('started', flush=True) or run_hydra()\n"
        "raise SystemExit(command.main())"
    )
    command = [sys.executable, "-c", code, "-m", "model=mlp", "batches=100000", "seed=0,1", "hydra.sweep.dir=sweep"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    time.sleep(seconds)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "failed:" not in out

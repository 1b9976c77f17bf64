"""What ends a run from outside: its time, between steps or hard, and an interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.runs.interrupts import interrupts_held_back, on_interrupt, time_limit
from tests.conftest import ROOT


def test_between_steps_a_run_past_its_time_raises(tmp_path):
    with time_limit(0.01, tmp_path / "log") as check:
        time.sleep(0.02)
        with pytest.raises(TimeoutError, match=r"timeout=0\.01 seconds"):
            check()
    assert os.listdir(tmp_path) == []


def test_without_a_limit_or_within_it_nothing_happens(tmp_path):
    for seconds in (None, 60):
        with time_limit(seconds, tmp_path / "log", on_end=print) as check:
            check()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("time.sleep(60)", "the run was not done after timeout=0.2 seconds, and no step ended: its process was ended"),
        # A regular expression that backtracks for ages holds the interpreter's lock: no Python thread can speak.
        ("re.match('(a+)+$', 'a' * 60 + 'b')", None),
    ],
    ids=["sleeps", "holds the lock"],
)
def test_in_a_process_of_its_own_a_step_that_does_not_end_is_ended(tmp_path, body, told):
    code = (
        "import re, time; from pathlib import Path; from runner.runs.interrupts import time_limit\n"
        f"with time_limit(0.2, Path('log'), Path('reason').write_text):\n    {body}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False)
    assert done.returncode == 1
    assert "line 3 in <module>" in Path("log").read_text()  # where it hung
    assert (Path("reason").read_text() if Path("reason").exists() else None) == told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_ends_the_training_and_further_ones_wait_until_all_is_written(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    written = []
    with on_interrupt(signal.default_int_handler):
        with interrupts_held_back() as let_through:
            try:
                with let_through():
                    os.kill(os.getpid(), number)
                    time.sleep(1)
            except KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                written.append("what was measured")
        written.append("and no second interrupt")
    assert len(written) == 2
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_while_a_run_is_written_is_raised_when_it_is():
    written = []
    with pytest.raises(KeyboardInterrupt), on_interrupt(signal.default_int_handler):  # noqa: PT012
        with interrupts_held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            written.append("the record")
        written.append("nothing that comes after")
    assert written == ["the record"]


def test_a_handler_of_somebody_elses_is_left_alone():
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with on_interrupt(signal.default_int_handler), interrupts_held_back():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, mine)


def test_an_interrupt_while_imports_go_on_is_raised_when_the_training_would_begin():
    with interrupts_held_back() as let_through:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), let_through():
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5])
def test_an_interrupt_while_a_command_starts_leaves_with_130_and_one_line(number, seconds):
    command = [sys.executable, "-m", "runner", "-m", "model=mlp", "batches=100000", "seed=0,1", "hydra.sweep.dir=sweep"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "failed:" not in out

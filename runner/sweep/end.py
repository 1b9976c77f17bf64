"""End a sweep: its tables and page, what is left to run, and its exit code."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.types import Quote, QuotedString

from runner.contract import (
    BATCHES,
    COMPARISON,
    COMPARISON_JSON,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STRICT,
    FAILURES,
    INTERRUPT,
    PAGE,
    SHARED,
    STOP,
    SWEEP_CONFIG,
    SWEEP_PLAN,
)
from runner.display.console import create_console
from runner.errors import ConfigError, listed
from runner.proof.verdict import strict_problems
from runner.runs.console import display_path
from runner.runs.folder import remove_files
from runner.runs.read import Run
from runner.runs.text import error_line
from runner.sweep.grid import SweepRun, has_run_name
from runner.sweep.launch import record_end
from runner.sweep.live import LiveReport
from runner.sweep.lock import detect_death, is_locked, remove_if_unused, wait_until_free

WITHOUT_RUNS = (
    SWEEP_CONFIG,
    SWEEP_PLAN,
    PAGE,
    COMPARISON,
    COMPARISON_JSON,
    FAILURES,
    BATCHES,
)  # written before the first run begins


def end_with_process(runs: list[SweepRun], live: LiveReport, reason: str, *, keep_shared: bool) -> None:
    """Print why a run ends the sweep's process, write the sweep's tables and page, and print what is left to run.

    Also removes what the runs shared, unless `keep_shared`.
    """
    print(error_line(f"failed: {reason}"), file=sys.stderr)
    live.stop()
    write_sweep_results(live.sweep, live.kept)
    print_what_is_left(runs, live.sweep)
    remove_marks(runs, live.sweep, keep_shared=keep_shared)
    sys.stdout.flush()


def print_what_is_left(runs: list[SweepRun], folder: Path) -> None:
    """Print how many runs of a sweep are not done, if any, and the command that carries them out."""
    from runner.report.terminal import print_left

    records = [run.record for run in runs]
    left = sum(record is None or record["status"] not in ("finished", "skipped") for record in records)
    if left:
        print_left(left, len(runs), command_to_go_on(sys.argv[1:], folder), create_console())


def command_to_go_on(arguments: Sequence[str], folder: Path) -> str:
    """Return the shell command that carries out the runs of a sweep that have not finished.

    `arguments`: those of the command that started the sweep. `folder`: the sweep's folder.
    """
    path = display_path(folder)
    value = path if re.fullmatch(r"[A-Za-z0-9_./-]+", path) else QuotedString(path, Quote.single).with_quotes()
    kept = [text for text in arguments if text.split("=")[0].lstrip("+") not in ("resume", "hydra.sweep.dir")]
    return f"python -m runner {shlex.join([*kept, f'hydra.sweep.dir={value}'])}"


def end_running(runs: list[SweepRun], folder: Path) -> None:
    """End the runs of an interrupted sweep that other processes carry out; wait up to 30 seconds until they have ended.

    For each run whose process died, a `run.json` with the status `interrupted` is written. The folder of each run that never
    began is removed. `folder`: the sweep's folder.
    """
    (folder / INTERRUPT).touch()
    wait_until_free([run.folder for run in runs], seconds=30)
    for run in runs:
        if detect_death(run.folder):
            record_end(run, "interrupted", "the sweep was interrupted")
        elif not run.ended and not is_locked(run.folder):
            remove_if_unused(run.folder)


@contextmanager
def remove_if_refused(runs: list[SweepRun], live: LiveReport) -> Iterator[None]:
    """Remove what a new sweep has written if the block raises ConfigError and no run has ended: none could be started.

    Otherwise `resume=last` would find this sweep instead of the one before it. A folder that is then empty is removed, too.
    """
    folder, is_new = live.sweep, not (live.sweep / SWEEP_CONFIG).exists()
    try:
        yield
    except ConfigError:
        live.stop()
        if is_new and not any(run.ended for run in runs):
            for run in runs:
                if not is_locked(run.folder):
                    remove_if_unused(run.folder)
            remove_files(folder, *WITHOUT_RUNS)
            with suppress(OSError):  # the launcher has left files of its own
                folder.rmdir()
        raise


def remove_marks(runs: list[SweepRun], folder: Path, *, keep_shared: bool) -> None:
    """Remove the files that tell the processes of a sweep what to do, unless one of them still carries out a run.

    Also removes what the runs shared, unless `keep_shared`, or a run of another sweep in this folder is in progress.
    """
    if folder.is_dir() and not any(is_locked(run.folder) for run in runs):
        remove_files(folder, STOP, INTERRUPT, BATCHES)
        if not keep_shared and not any(map(is_locked, filter(has_run_name, folder.iterdir()))):
            shutil.rmtree(folder / SHARED, ignore_errors=True)


def write_sweep_results(folder: Path, kept: dict[Path, Run]) -> bool:
    """Write a sweep's tables and report page from its runs' folders; print the ranking, the answer and the page's path.

    Returns True, or False if a file could not be written. `kept`: the runs that were read before; see `read_sweep`.
    """
    from runner.report.files import write_sweep_files
    from runner.report.terminal import print_report

    try:
        run_set = write_sweep_files(folder, kept)
    except OSError as error:
        print(error_line(f"the sweep's tables cannot be written: {error}"), file=sys.stderr)
        return False
    except Exception as error:  # of ours: what is left to run must be said all the same
        reason = f"{type(error).__name__}: {error}"
        print(error_line(f"the sweep's page cannot be made ({reason}); its runs are whole, see {folder}"), file=sys.stderr)
        return False
    print_report(run_set, folder / PAGE, create_console())
    return True


def exit_code(runs: list[SweepRun]) -> int:
    """Return the exit code of a sweep: the first of 130, 1 and 3 that applies, otherwise 0.

    130: a run was interrupted. 1: a run failed, or did not end. 3: a run fails under `strict=true` (`strict_problems`).
    """
    records = [run.record for run in runs]
    if any(record and record["status"] == "interrupted" for record in records):
        return EXIT_INTERRUPTED
    if any(record is None or record["status"] == "failed" for record in records):
        return EXIT_FAILED
    strict_violated = any(
        run.strict and record and strict_problems(record) for run, record in zip(runs, records, strict=True)
    )
    return EXIT_STRICT if strict_violated else EXIT_DONE


def end_with_code(code: int, runs: Sequence[SweepRun]) -> NoReturn:
    """Raise SystemExit with an exit code that is not 0; if it is that of `strict=true`, print to stderr what is wrong."""
    if code == EXIT_STRICT:
        print(error_line(f"strict: {strict_summary(runs)}"), file=sys.stderr)
    sys.exit(code)


def strict_summary(runs: Sequence[SweepRun]) -> str:
    """Return a text that says which runs fail under `strict=true`, and why: `1 of 2 runs: NAME (1 frozen tensor leaked)`."""
    problems = {run.folder.name: strict_problems(run.record) for run in runs if run.strict and run.record}
    failing = [f"{name} ({'; '.join(texts)})" for name, texts in problems.items() if texts]
    return f"{len(failing)} of {len(runs)} runs: {listed(failing)}"

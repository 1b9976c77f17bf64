"""Carry out a sweep: prepare its folder, start the runs that have not finished, and write the tables and the page."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from rich.text import Text

from runner.config.check import check_folders
from runner.config.schema import Config
from runner.contract import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, INTERRUPT, STOP, SWEEP_CONFIG, SWEEP_PLAN
from runner.display.console import create_console, hanging, print_unbroken
from runner.display.table import Column, table_lines
from runner.errors import ConfigError
from runner.runs.console import display_path
from runner.runs.exits import end_once, guard_process
from runner.runs.folder import remove_files, write_atomically, write_text
from runner.runs.interrupts import delay_interrupts, handle_interrupts, import_dependencies, time_limit
from runner.runs.read import is_run_folder
from runner.runs.record import persistent_overrides
from runner.runs.text import counted, error_line
from runner.sweep.composing import Composer, composed_for_workers
from runner.sweep.end import (
    command_to_go_on,
    end_running,
    end_with_code,
    end_with_process,
    exit_code,
    print_what_is_left,
    remove_if_refused,
    remove_marks,
    write_sweep_results,
)
from runner.sweep.grid import SweepRun, compose_runs, has_run_name, runs_alike
from runner.sweep.launch import DiskFullError, check_reachable, launch
from runner.sweep.live import LiveReport
from runner.sweep.lock import check_locks_work, clear_folder, detect_death
from runner.sweep.progress import show_progress
from runner.sweep.start import SEQUENTIAL, number_of_workers, starting
from runner.sweep.worker import Job, Worker
from runner.sweep.workers import call_in_process

SWEEPS_FOLDER = Path("outputs") / "sweeps"


def sweep(config: DictConfig, context: HydraContext, launcher: Launcher, override_lists: Sequence[list[str]]) -> None:
    """Carry out one run for each list of overrides (`key=value` texts), then write the sweep's tables and report page.

    `config`, `context` and `launcher` are what Hydra gives to its sweepers. Runs that have already finished in the sweep's
    folder are not repeated. With `plan=true` the runs are only listed.

    Raises ConfigError if a config is wrong or no run can be started; a new sweep then leaves no file. Raises SystemExit if
    the exit code of the sweep is not 0.
    """
    folder = resolve_folder(config)
    runs, dropped = compose_runs(Composer(context.config_loader, config), override_lists, folder)
    if not runs:
        raise ConfigError("the sweep has no run: a glob or a range in it is empty")
    if dropped:
        print(f"{dropped} of {dropped + len(runs)} runs dropped: the same config as another in the grid")
    if config.plan:
        return print_plan(runs, folder, create_console())
    check_folder(folder)
    unfinished = [run for run in runs if not run.finished]
    if len(unfinished) < len(runs):
        print(f"{len(runs) - len(unfinished)} of {len(runs)} runs are finished already and kept")
    if unfinished:
        check_before_first(config, unfinished)
    interrupted, live = False, LiveReport(folder, config.report.every)
    try:
        with handle_interrupts(signal.default_int_handler), remove_if_refused(runs, live):
            prepare_folder(config, runs, folder)
            in_order = clear_folders(runs, unfinished)
            live.start()
            before_exit = partial(end_with_process, runs, live, keep_shared=config.sweep.keep)
            checked = {run.folder.name: run.config for run in in_order}
            worker = Worker.from_this_process(folder, before_exit=before_exit, checked=checked, alike=runs_alike(runs))
            launch_runs(config, context, launcher, in_order, worker=worker)
    except KeyboardInterrupt:
        interrupted = True
        end_running(unfinished, folder)
    finally:
        with delay_interrupts():
            live.stop()
            written = not any(run.ended for run in runs) or write_sweep_results(folder, live.kept)
            remove_marks(runs, folder, keep_shared=config.sweep.keep)
    print_what_is_left(runs, folder)
    code = EXIT_INTERRUPTED if interrupted else exit_code(runs) or (EXIT_DONE if written else EXIT_FAILED)
    if code:
        end_with_code(code, runs)


def print_plan(runs: list[SweepRun], folder: Path, console: Console) -> None:
    """Print the runs of a sweep: which are finished, in what they differ, and the folder of each; and what they share."""
    overrides = [dict(text.split("=", 1) for text in persistent_overrides(run.overrides) if "=" in text) for run in runs]
    keys = dict.fromkeys(key for values in overrides for key in values)
    swept = [key for key in keys if len(runs) == 1 or len({values.get(key) for values in overrides}) > 1]
    shared = " ".join(f"{key}={overrides[0][key]}" for key in keys if key not in swept)
    finished = [run.finished for run in runs]
    lines = hanging(
        Text(f"{counted(len(runs), 'run')}: {sum(finished):,} finished, {finished.count(False):,} to run"), console
    )
    lines += hanging(Text(f"all with {shared}"), console) if shared else []
    columns = [Column("state"), *(Column(key, least=14) for key in swept), Column("folder", least=18)]
    rows = [
        ["finished" if is_finished else "to run", *(values.get(key, "") for key in swept), run.folder.name]
        for run, values, is_finished in zip(runs, overrides, finished, strict=True)
    ]
    for line in (*lines, *table_lines(columns, rows, console.width)):
        console.print(line)
    print_unbroken(console, f"in {display_path(folder)}")


def resolve_folder(config: DictConfig) -> Path:
    """Determine the sweep's folder, store its absolute path in the config, and return the path.

    The path is stored so that other processes of the sweep, which compose their own configs, use the same folder. With
    `resume=last` the folder is that of the newest sweep below SWEEPS_FOLDER. Raises ConfigError if there is no sweep to
    resume, or if both `resume=last` and `hydra.sweep.dir` are given.
    """
    if config.resume == "last":
        if any(text.startswith("hydra.sweep.dir=") for text in config.hydra.overrides.hydra):
            raise ConfigError("resume=last and hydra.sweep.dir both name the sweep's folder; give one of them")
        sweeps = sorted(path.parent for path in SWEEPS_FOLDER.glob(f"*/*/{SWEEP_CONFIG}"))
        if not sweeps:
            raise ConfigError(f"resume=last finds no sweep below {SWEEPS_FOLDER}; give hydra.sweep.dir=DIR")
        folder = sweeps[-1].absolute()
    else:
        check_folders(config.hydra)
        folder = Path(config.hydra.sweep.dir).absolute()
    quoted = str(folder).replace("'", "\\'")
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
    return folder


def check_before_first(config: DictConfig, runs: list[SweepRun]) -> None:
    """Raise ConfigError if the launcher or the patterns of all runs are known to fail; print a note about slow threads."""
    check_reachable(OmegaConf.select(config, "hydra.launcher.ray.init.address"))
    if warning := too_many_threads(config):
        print(warning)
    if len({repr(run.config.model) for run in runs}) > 1:
        return
    configs = list({repr((run.config.freeze, run.config.groups)): run.config for run in runs}.values())
    if workers := number_of_workers(config):
        call_in_process(workers, refuse_patterns_that_never_fit, configs)
    else:
        refuse_patterns_that_never_fit(configs)


def refuse_patterns_that_never_fit(configs: list[Config]) -> None:
    """Raise ConfigError if the patterns of none of the runs' configs fit their model, which is the same for all.

    The model is built once, in this process. If that fails, nothing is raised: the runs themselves will fail and say why. If
    it hangs, and no signal ends it after the config's `timeout`, the process is ended.
    """
    import_dependencies()
    from runner.assemble.objects import check_patterns

    def print_end(reason: str) -> None:
        print(error_line(f"failed: {reason} (while the model was built, before the first run)"), file=sys.stderr)

    no_log = Path(os.devnull)
    try:
        with end_once(print_end, no_log) as end, time_limit(configs[0].timeout, no_log, end), guard_process(end):
            check_patterns(configs)
    except ConfigError as error:
        raise ConfigError(f"{error} (in every run of the sweep; nothing was run)") from error
    except KeyboardInterrupt:
        raise
    except BaseException:  # a user's class may raise any exception
        return


def check_folder(folder: Path) -> None:
    """Raise ConfigError if the sweep's folder has files of other origin, so that the sweep does not mix with them.

    The folder is accepted if it is new, if a sweep of this project was started in it before, or if it has only hidden files
    and folders of a sweep's runs.
    """
    if not folder.is_dir():
        return
    sweep_config = folder / SWEEP_CONFIG
    if sweep_config.is_file() and "FreezeSweeper" in sweep_config.read_text(errors="replace"):
        return
    foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".") and not is_own_run_folder(path)]
    if foreign:
        raise ConfigError(
            f"{display_path(folder)} holds {min(foreign)} and no sweep of freeze-runner; "
            "give another folder: hydra.sweep.dir=DIR"
        )


def is_own_run_folder(path: Path) -> bool:
    """Return True if a folder has the form of name that a sweep gives to runs, and is empty or has files of a run."""
    return has_run_name(path) and (is_run_folder(path) or not any(path.iterdir()))


def prepare_folder(config: DictConfig, runs: list[SweepRun], folder: Path) -> None:
    """Create a sweep's folder with the sweep's config and the names of its runs; remove what an earlier start left in it.

    `config`: Hydra's config of the sweep. `runs`: all runs, those that are finished too. Raises ConfigError if files in the
    folder cannot be locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_locks_work(folder)
    for temporary in folder.glob(".*.part"):
        remove_files(folder, temporary.name)
    remove_files(folder, STOP, INTERRUPT)
    write_atomically(folder / SWEEP_CONFIG, lambda temporary: OmegaConf.save(config, temporary))
    plan = {"command": command_to_go_on(sys.argv[1:], folder), "runs": [run.folder.name for run in runs]}
    write_text(folder / SWEEP_PLAN, json.dumps(plan, indent=1) + "\n")


def clear_folders(runs: list[SweepRun], unfinished: list[SweepRun]) -> list[SweepRun]:
    """Remove what an earlier start left: `.running` of all runs, and `run.json` of the unfinished ones, so that no report
    shows it as a result.

    Returns the unfinished runs in the order in which to start them: those whose process died then come after the others, and
    a line that says so is printed.
    """
    died = {run.hash for run in runs if detect_death(run.folder)}
    for run in unfinished:
        clear_folder(run)
    if died:
        print(f"an earlier start died during {counted(len(died), 'run')}, now run last; launch=joblib isolates each run")
    return sorted(unfinished, key=lambda run: run.hash in died)


def launch_runs(
    config: DictConfig, context: HydraContext, launcher: Launcher, runs: list[SweepRun], *, worker: Worker
) -> None:
    """Start the runs in `runs`, show their progress, and return when all of them have ended.

    `config`, `context` and `launcher` are Hydra's. `worker` carries out each run, in any process.
    """
    if not runs:
        return
    folder = Path(worker.sweep)
    elsewhere = [] if config.hydra.runtime.choices["hydra/launcher"] == SEQUENTIAL else [run.overrides for run in runs]
    with (
        composed_for_workers(context, runs[0].composer, elsewhere, folder) as context,
        show_progress(runs, create_console()),
        starting(Job(context, config, worker), launcher, runs) as (start, batches),
    ):
        try:
            launch(start, batches, folder, config.on_error == "stop")
        except DiskFullError as error:
            print(error_line(f"failed: {error}"), file=sys.stderr)


def too_many_threads(config: DictConfig) -> str:
    """Return a note for the user if the sweep's processes together use more threads than this machine has cores.

    Returns "" if there are enough cores, or if the config of the launcher does not say how many processes it uses.
    """
    workers = config.hydra.launcher.get("n_jobs")
    if workers is None:
        return ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers if workers > 0 else max(1, cores + 1 + workers)  # -1 is all cores, as in joblib
    threads = cores if config.threads == "auto" else config.threads
    if workers * threads <= cores:
        return ""
    used = f"{counted(workers, 'worker')} x {counted(threads, 'thread')} on {counted(cores, 'core')}"
    return f"note: {used}: runs will wait for each other"

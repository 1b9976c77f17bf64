"""A sweep: its folder, its cells, what is still to run, and the tables and the page that are read back from files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from runner.contract import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STRICT, INTERRUPT, STOP, SWEEP_CONFIG
from runner.errors import ConfigError
from runner.proof.verdict import strayed
from runner.runs.console import shown, terminal
from runner.runs.folder import discard, write_whole
from runner.runs.interrupts import interrupts_held_back, on_interrupt
from runner.runs.read import is_run
from runner.runs.record import persistent_overrides
from runner.sweep.grid import Cell, Composed, grid, is_run_folder
from runner.sweep.launch import DiskFullError, launch, record_end, refuse_unreachable
from runner.sweep.lock import clear, died, is_held, refuse_without_locks, remove_if_empty, wait_until_free
from runner.sweep.progress import progress_of
from runner.sweep.worker import Worker

SWEEPS = Path("outputs") / "sweeps"
IN_THIS_PROCESS = "basic"  # Hydra's launcher that runs in this process, one run after the other


def sweep(config: DictConfig, context: HydraContext, launcher: Launcher, spanned: Sequence[list[str]]) -> None:
    """Run the grid of these overrides, write the sweep's files, and leave by SystemExit where not all is well.

    Raises ConfigError before anything is written where any cell cannot be composed, and where no run can be launched.
    """
    folder = settled_folder(config)
    cells, dropped = grid(config, context.config_loader, spanned, folder)
    if not cells:
        raise ConfigError("the sweep has no run: a glob or a range in it is empty")
    if dropped:
        print(f"{dropped} of {dropped + len(cells)} runs dropped: the same config as another in the grid")
    if config.plan:
        for cell in cells:
            state = "finished" if cell.finished else "to run  "
            print(f"{state}  {shown(cell.folder)}  {' '.join(persistent_overrides(cell.overrides))}")
        return
    refuse_foreign(folder)
    left = [cell for cell in cells if not cell.finished]
    if len(left) < len(cells):
        print(f"{len(cells) - len(left)} of {len(cells)} runs are finished already and kept")
    if left:
        refuse_unreachable(OmegaConf.select(config, "hydra.launcher.ray.init.address"))
        if crowd := crowding(config):
            print(crowd)
    interrupted = False
    try:
        with on_interrupt(signal.default_int_handler):
            carry_out(config, context, launcher, left, folder=folder)
    except KeyboardInterrupt:
        interrupted = True
        end_what_goes_on(left, folder)
    finally:
        with interrupts_held_back():
            written = not any(cell.ended for cell in cells) or conclude(folder)
    if (folder / STOP).exists() and (unbegun := sum(not cell.ended for cell in cells)):
        print(f"{unbegun} of {len(cells)} runs were not begun: on_error=stop")
    if code := EXIT_INTERRUPTED if interrupted else exit_code(cells) or (EXIT_DONE if written else EXIT_FAILED):
        sys.exit(code)


def settled_folder(config: DictConfig) -> Path:
    """The sweep's folder, absolute, and told to every process that composes a run's config."""
    if config.resume == "last":
        if any(text.startswith("hydra.sweep.dir=") for text in config.hydra.overrides.hydra):
            raise ConfigError("resume=last and hydra.sweep.dir both name the sweep's folder; give one of them")
        sweeps = sorted(path.parent for path in SWEEPS.glob(f"*/*/{SWEEP_CONFIG}"))
        if not sweeps:
            raise ConfigError(f"resume=last finds no sweep below {SWEEPS}; give hydra.sweep.dir=DIR")
        folder = sweeps[-1].absolute()
    else:
        folder = Path(config.hydra.sweep.dir).absolute()
    quoted = str(folder).replace("'", "\\'")
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
    return folder


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but a sweep of ours: the sweep's files could fall on another's."""
    if not folder.is_dir():
        return
    grid_file = folder / SWEEP_CONFIG
    if grid_file.is_file() and "FreezeSweeper" in grid_file.read_text(errors="replace"):
        return
    foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".") and not holds_none_but_ours(path)]
    if foreign:
        raise ConfigError(
            f"{shown(folder)} holds {min(foreign)} and no sweep of freeze-runner; give another folder: hydra.sweep.dir=DIR"
        )


def holds_none_but_ours(path: Path) -> bool:
    """Whether this is the folder of a run, by its name and by what it holds."""
    return is_run_folder(path) and (is_run(path) or not any(path.iterdir()))


def carry_out(config: DictConfig, context: HydraContext, launcher: Launcher, cells: list[Cell], *, folder: Path) -> None:
    """Make the sweep's folder, and run the cells by the launcher of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    refuse_without_locks(folder)
    for part in folder.glob(".*.part"):
        discard(folder, part.name)
    discard(folder, STOP, INTERRUPT)
    write_whole(folder / SWEEP_CONFIG, lambda beside: OmegaConf.save(config, beside))
    if not cells:
        return
    lost = [cell for cell in cells if died(cell.folder)]
    for cell in cells:
        clear(cell)
    if lost:
        print(f"{len(lost)} runs ended with their process at an earlier start, and come last; launch=joblib isolates each")
        cells = [*(cell for cell in cells if cell not in lost), *lost]
    batches = [cells]
    if config.hydra.runtime.choices["hydra/launcher"] == IN_THIS_PROCESS:  # it keeps the config of all runs of a launch
        context = Composed.instead_of(context, cells)
        batches = [[cell] for cell in cells]
    launcher.setup(hydra_context=context, task_function=Worker.of_this_process(folder), config=config)
    with progress_of(cells, terminal()):
        try:
            launch(launcher, batches, folder, config.on_error == "stop")
        except DiskFullError as error:
            print(f"freeze-runner: failed: {error}", file=sys.stderr)


def end_what_goes_on(cells: list[Cell], folder: Path) -> None:
    """After an interrupt: ask the runs in other processes to end, wait for them a while, and record those that died."""
    (folder / INTERRUPT).touch()
    wait_until_free([cell.folder for cell in cells], seconds=10)
    for cell in cells:
        if died(cell.folder):
            record_end(cell, "interrupted", "the sweep was interrupted")
        elif not cell.ended and not is_held(cell.folder):
            remove_if_empty(cell.folder)


def crowding(config: DictConfig) -> str:
    """What is to be said where the workers of this machine have more threads than it has cores; empty where they fit."""
    workers = config.hydra.launcher.get("n_jobs")
    if workers is None:
        return ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers if workers > 0 else max(1, cores + 1 + workers)  # as joblib counts
    threads = cores if config.threads == "auto" else config.threads
    if workers * threads <= cores:
        return ""
    return f"note: {workers} workers x {threads} threads on {cores} cores: runs will wait for each other"


def conclude(folder: Path) -> bool:
    """Write the sweep's tables and its page from its run folders, and print one table; returns whether they were written."""
    from runner.report.comparison import print_comparison
    from runner.report.files import write_sweep_files

    try:
        print_comparison(write_sweep_files(folder), terminal())
    except OSError as error:
        print(f"freeze-runner: the sweep's tables cannot be written: {error}", file=sys.stderr)
        return False
    print(f"files: {shown(folder)}")
    return True


def exit_code(cells: list[Cell]) -> int:
    """130 where a run was interrupted, 1 where one failed, 3 where a strict one leaked or idled; else, skips included, 0."""
    records = [cell.record for cell in cells]
    if any(record and record["status"] == "interrupted" for record in records):
        return EXIT_INTERRUPTED
    if any(record is None or record["status"] == "failed" for record in records):
        return EXIT_FAILED
    strayed_away = any(
        cell.strict and record and strayed(record["counts"]) for cell, record in zip(cells, records, strict=True)
    )
    return EXIT_STRICT if strayed_away else EXIT_DONE

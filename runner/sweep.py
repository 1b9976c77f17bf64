"""A sweep: the grid's cells, checked before any runs; duplicates dropped; one table, read back from files, at the end."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from runner.config import check
from runner.errors import ConfigError
from runner.identity import config_hash, run_name
from runner.report.read import Record, read_record
from runner.verdict import strayed

if TYPE_CHECKING:
    from hydra_plugins.freeze_sweeper import FreezeSweeper


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its overrides, its folder, its config, and whether leaking or idling makes its exit code 3."""

    overrides: list[str]
    folder: Path
    strict: bool
    composed: bytes

    @property
    def record(self) -> Record | None:
        return read_record(self.folder)

    @property
    def finished(self) -> bool:
        return bool(self.record and self.record["status"] == "finished")


def sweep(sweeper: FreezeSweeper, arguments: list[str]) -> None:
    """Run the grid that `arguments` span, write the sweep's files, and leave by SystemExit where not all is well.

    Raises ConfigError before anything is written where any cell cannot be composed.
    """
    assert sweeper.config is not None
    assert sweeper.launcher is not None
    folder = Path(sweeper.config.hydra.sweep.dir)
    cells, dropped = grid(sweeper, arguments, folder)
    if not cells:
        raise ConfigError("the sweep has no run: a glob or a range in it is empty")
    if dropped:
        print(f"{dropped} of {dropped + len(cells)} runs dropped: the same config as another in the grid")
    if sweeper.config.plan:
        for cell in cells:
            print(f"{'finished' if cell.finished else 'to run  '}  {cell.folder}  {' '.join(cell.overrides)}")
        return
    kept = [cell for cell in cells if cell.finished]
    if kept:
        print(f"{len(kept)} of {len(cells)} runs are finished already and kept")
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(sweeper.config, folder / "multirun.yaml")
    interrupted = False
    try:
        left = [cell for cell in cells if not cell.finished]
        if left:
            if isinstance(sweeper.launcher, BasicLauncher):
                assert sweeper.launcher.hydra_context is not None
                sweeper.launcher.hydra_context = Composed.instead_of(sweeper.launcher.hydra_context, left)
            sweeper.launcher.launch([cell.overrides for cell in left], initial_job_idx=0)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        conclude(folder)
    if code := 130 if interrupted else exit_code(cells):
        sys.exit(code)


def grid(sweeper: FreezeSweeper, arguments: list[str], folder: Path) -> tuple[list[Cell], int]:
    """The distinct cells, each composed and checked, and how many were dropped as duplicates."""
    assert sweeper.hydra_context is not None
    assert sweeper.config is not None
    loader = sweeper.hydra_context.config_loader
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*sweeper._parse_config(), *arguments])
    (spanned,) = sweeper.split_arguments(parsed, max_batch_size=None)
    cells: dict[str, Cell] = {}
    for overrides in spanned:
        composed = loader.load_sweep_config(sweeper.config, list(overrides))
        try:
            strict = check(composed).strict
        except ConfigError as error:
            raise ConfigError(f"{error} (in the run {' '.join(overrides)}; nothing was run)") from error
        # Pickled, for a thousand live configs take a gigabyte.
        cell = Cell(overrides, folder / run_name(composed), strict, pickle.dumps(composed))
        cells.setdefault(config_hash(composed), cell)
    return list(cells.values()), len(spanned) - len(cells)


class Composed:
    """A config loader that hands the local launcher what the grid has composed: composing costs more than a small run."""

    def __init__(self, loader: ConfigLoader, cells: list[Cell]) -> None:
        self.loader, self.cells = loader, {tuple(cell.overrides): cell.composed for cell in cells}

    @classmethod
    def instead_of(cls, context: HydraContext, cells: list[Cell]) -> HydraContext:
        loader: Any = cls(context.config_loader, cells)
        return HydraContext(config_loader=loader, callbacks=context.callbacks)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        config = pickle.loads(self.cells[tuple(sweep_overrides)])
        OmegaConf.copy_cache(master_config, config)  # the sweep's time, which its folder is named by
        return config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def conclude(folder: Path) -> None:
    """Write the sweep's tables from its run folders, and print one."""
    from runner.report.table import print_comparison, write_tables
    from runner.summary import terminal

    print_comparison(write_tables(folder), terminal())
    print(f"files: {folder}")


def exit_code(cells: list[Cell]) -> int:
    """1 where a run failed, else 3 where a strict one leaked or idled, else 0; a skipped run is a row and no failure."""
    records = [(cell, cell.record) for cell in cells]
    if any(record is None or record["status"] == "failed" for _, record in records):
        return 1
    return 3 if any(cell.strict and record and strayed(record["counts"]) for cell, record in records) else 0

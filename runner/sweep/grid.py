"""The grid of a sweep: its distinct cells, each composed and checked before any runs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from runner.config.check import check
from runner.config.naming import config_hash, run_name
from runner.contract import Record
from runner.errors import ConfigError
from runner.runs.folder import RUN_NAME
from runner.runs.read import checked_record, read_record, tables_are_whole


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its overrides, its config's hash, its folder, whether leaking or idling makes its exit code 3."""

    overrides: list[str]
    hash: str
    folder: Path
    strict: bool
    composed: bytes

    @property
    def record(self) -> Record | None:
        record = read_record(self.folder)
        return checked_record(record, []) if record else None

    @property
    def finished(self) -> bool:
        """Whether it has finished, and its tables are still whole: as many rows as the record counts."""
        record = self.record
        return bool(record and record["status"] == "finished" and tables_are_whole(self.folder, record))

    @property
    def failed(self) -> bool:
        record = self.record
        return bool(record and record["status"] == "failed")

    @property
    def ended(self) -> bool:
        return self.record is not None


def grid(config: DictConfig, loader: ConfigLoader, spanned: Sequence[list[str]], folder: Path) -> tuple[list[Cell], int]:
    """The distinct cells of the overrides that a sweep spans, and how many were dropped as duplicates.

    Raises ConfigError where one cannot be composed.
    A run is its config: where one of the same config has finished below `folder` under another name, it is that cell's.
    """
    cells: dict[str, Cell] = {}
    for overrides in spanned:
        composed = loader.load_sweep_config(config, overrides)
        try:
            strict = check(composed).strict
        except ConfigError as error:
            raise ConfigError(f"{error} (in the run {' '.join(overrides)}; nothing was run)") from error
        # Pickled, for a thousand live configs take a gigabyte.
        hashed = config_hash(composed)
        cell = Cell(
            overrides=overrides,
            hash=hashed,
            folder=folder / run_name(composed),
            strict=strict,
            composed=pickle.dumps(composed),
        )
        cells.setdefault(hashed, cell)
    for path in filter(is_run_folder, folder.iterdir()) if folder.is_dir() else ():
        own = cells.get(path.name[-8:])
        if own and path != own.folder and (other := replace(own, folder=path)).finished:
            cells[own.hash] = other
    return list(cells.values()), len(spanned) - len(cells)


def is_run_folder(path: Path) -> bool:
    """Whether this is named as the folder of a run in a sweep is."""
    return bool(RUN_NAME.fullmatch(path.name))


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
        if name == "loader":  # of a copy that is not whole yet
            raise AttributeError(name)
        return getattr(self.loader, name)

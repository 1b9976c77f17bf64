"""The grid of a sweep: its distinct runs, each config composed and checked before any run starts."""

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
from runner.runs.read import checked_record, read_record, tables_are_complete


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        overrides: the overrides that its config is composed from.
        hash: the hash of its config.
        strict: whether its config has `strict=true`.
        pickled_config: its composed config.
    """

    overrides: list[str]
    hash: str
    folder: Path
    strict: bool
    pickled_config: bytes

    @property
    def record(self) -> Record | None:
        """Its `run.json`, read from its folder; None if the run has not ended."""
        record = read_record(self.folder)
        return checked_record(record, []) if record else None

    @property
    def finished(self) -> bool:
        """Whether its status is `finished` and its tables are complete."""
        record = self.record
        return bool(record and record["status"] == "finished" and tables_are_complete(self.folder, record))

    @property
    def failed(self) -> bool:
        """Whether its status is `failed`."""
        record = self.record
        return bool(record and record["status"] == "failed")

    @property
    def ended(self) -> bool:
        """Whether it has a record, with any status."""
        return self.record is not None


def compose_runs(
    config: DictConfig, loader: ConfigLoader, override_lists: Sequence[list[str]], folder: Path
) -> tuple[list[SweepRun], int]:
    """Return the distinct runs of a sweep, and how many were dropped because their config equals another run's.

    `override_lists`: the overrides of each run. `folder`: the sweep's folder. If a run of the same config has finished in
    another folder there, that folder is used. Raises ConfigError if a config cannot be composed.
    """
    runs: dict[str, SweepRun] = {}
    for overrides in override_lists:
        composed = loader.load_sweep_config(config, overrides)
        try:
            strict = check(composed).strict
        except ConfigError as error:
            raise ConfigError(f"{error} (in the run {' '.join(overrides)}; nothing was run)") from error
        hash_ = config_hash(composed)
        run = SweepRun(
            overrides=overrides,
            hash=hash_,
            folder=folder / run_name(composed),
            strict=strict,
            pickled_config=pickle.dumps(composed),  # a thousand config objects would take a gigabyte
        )
        runs.setdefault(hash_, run)
    for path in filter(has_run_name, folder.iterdir()) if folder.is_dir() else ():
        run_of_hash = runs.get(path.name[-8:])
        if run_of_hash and path != run_of_hash.folder and (moved := replace(run_of_hash, folder=path)).finished:
            runs[moved.hash] = moved
    return list(runs.values()), len(override_lists) - len(runs)


def has_run_name(path: Path) -> bool:
    """Whether a path is named like a run's folder in a sweep."""
    return bool(RUN_NAME.fullmatch(path.name))


class ComposedConfigLoader:
    """A config loader that returns the configs that the runs already have; composing takes longer than a small run."""

    def __init__(self, loader: ConfigLoader, runs: list[SweepRun]) -> None:
        self.loader, self.pickled_configs = loader, {tuple(run.overrides): run.pickled_config for run in runs}

    @classmethod
    def context_for(cls, context: HydraContext, runs: list[SweepRun]) -> HydraContext:
        """Return a Hydra context with such a loader in place of the context's own."""
        loader: Any = cls(context.config_loader, runs)
        return HydraContext(config_loader=loader, callbacks=context.callbacks)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the config of the run with these overrides."""
        config = pickle.loads(self.pickled_configs[tuple(sweep_overrides)])
        OmegaConf.copy_cache(master_config, config)  # keeps the sweep's start time, which is in its folder's name
        return config

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet while the object is copied
            raise AttributeError(name)
        return getattr(self.loader, name)

"""The runs of a sweep. All configs are composed and checked before any run starts; equal configs give one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import ceil, prod
from pathlib import Path

from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from runner.config.check import check
from runner.config.naming import run_name
from runner.config.schema import Config, Sweep
from runner.contract import Record
from runner.errors import ConfigError, is_integer
from runner.runs.folder import RUN_NAME
from runner.runs.read import checked_record, read_record, tables_are_complete
from runner.sweep.composing import Composer

ALIKE = (  # the keys on which the outputs of frozen first layers depend
    *("model", "freeze", "data", "task", "seed", "batches", "accumulate"),
    *("device", "threads", "deterministic", "autocast"),
)


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, started or not.

    Attributes:
        overrides: the `key=value` texts that its config is composed from.
        hash: the hash of its config, equal for equal configs.
        folder: the folder for its files.
        config: its config after it was checked.
        composer: what composes its config anew. A thousand composed configs would take a gigabyte.
    """

    overrides: list[str]
    hash: str
    folder: Path
    config: Config
    composer: Composer

    @property
    def strict(self) -> bool:
        """Whether its config has `strict=true`."""
        return self.config.strict

    @property
    def composed(self) -> DictConfig:
        """Its composed config, composed anew at each access."""
        return self.composer.compose(self.overrides)

    @property
    def record(self) -> Record | None:
        """The content of the run's `run.json`, read anew at each access; None if the run has not ended."""
        record = read_record(self.folder)
        return checked_record(record, []) if record else None

    @property
    def finished(self) -> bool:
        """True if the run trained to its end, and its `changes.csv` and `steps.csv` are complete."""
        record = self.record
        return bool(record and record["status"] == "finished" and tables_are_complete(self.folder, record))

    @property
    def failed(self) -> bool:
        """True if the run has ended with the status `failed`."""
        record = self.record
        return bool(record and record["status"] == "failed")

    @property
    def ended(self) -> bool:
        """True if the run has a `run.json`, which is written when a run ends, with any status."""
        return self.record is not None


def last_of_each_key(overrides: Sequence[Override]) -> list[Override]:
    """Return the overrides without those that a later one of the same key replaces, so that nobody lists their values."""
    return list({override.get_key_element(): override for override in overrides}.values())


def refuse_too_many_runs(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Raise ConfigError if a sweep has more runs than `sweep.max_runs`; the runs are counted without a list of them.

    `config`: Hydra's config of the sweep. `overrides`: what the command line sets and sweeps over.
    """
    limit = OmegaConf.select(config, "sweep.max_runs", default=Sweep.max_runs)
    if not is_integer(limit) or limit < 1:
        raise ConfigError(f"sweep.max_runs is {limit!r}; it must be a whole number of 1 or more")
    count = prod({override.get_key_element(): count_values(override) for override in overrides}.values())
    if count > limit:
        number = f"{count:,}" if count < 10**15 else "more than 10**15"
        raise ConfigError(
            f"the sweep has {number} runs, and sweep.max_runs is {limit:,}; sweep over fewer values or raise it"
        )


def count_values(override: Override) -> int:
    """Return over how many values an override sweeps; 1 if it does not sweep. Raises ConfigError for an endless range."""
    values = override.value()
    if not isinstance(values, RangeSweep):
        return len(list(override.sweep_iterator())) if override.is_discrete_sweep() else 1
    start, stop, step = (Decimal(number or 0) for number in (values.start, values.stop, values.step))
    try:
        return max(0, ceil((stop - start) / step))
    except (ArithmeticError, ValueError) as error:
        raise ConfigError(f"{override.input_line}: a range needs a first value, an end, and a step other than 0") from error


def compose_runs(composer: Composer, override_lists: Sequence[list[str]], folder: Path) -> tuple[list[SweepRun], int]:
    """Compose and check the config of each run, and return (list of runs, number of duplicates that were left out).

    A run is a duplicate if its config equals that of an earlier run. `override_lists`: a list of `key=value` texts for each
    run. `folder`: the sweep's folder. Raises ConfigError if a config is wrong.

    The sweep's folder may already have a finished run with an equal config in a folder of another name. Then the run uses
    that folder.
    """
    runs: dict[str, SweepRun] = {}
    for overrides in override_lists:
        composed = composer.compose(overrides)
        try:
            checked = check(composed)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the run {' '.join(overrides)}; nothing was run)") from error
        name = run_name(composed)
        run = SweepRun(overrides=overrides, hash=name[-8:], folder=folder / name, config=checked, composer=composer)
        runs.setdefault(run.hash, run)
    for path in filter(has_run_name, folder.iterdir()) if folder.is_dir() else ():
        run_of_hash = runs.get(path.name[-8:])
        if run_of_hash and path != run_of_hash.folder and (moved := replace(run_of_hash, folder=path)).finished:
            runs[moved.hash] = moved
    return list(runs.values()), len(override_lists) - len(runs)


def runs_alike(runs: Sequence[SweepRun]) -> dict[str, int]:
    """Return {name of a run's folder: how many runs, with this one, begin with the same model and read the same data}."""
    of_run = {run.folder.name: repr([getattr(run.config, name) for name in ALIKE]) for run in runs}
    numbers = Counter(of_run.values())
    return {name: numbers[of_run[name]] for name in of_run}


def has_run_name(path: Path) -> bool:
    """Return True if a path's last part has the form of a run's folder in a sweep, `METHOD__FREEZE__sSEED__HASH8`."""
    return bool(RUN_NAME.fullmatch(path.name))

"""Compose the configs of a sweep's runs: once for each choice of config groups, and once for all processes."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from runner.config.compose import HYDRA_1_4
from runner.contract import CONFIGS

SETTERS = (OverrideType.CHANGE, OverrideType.FORCE_ADD)  # `key=value` and `++key=value`


class Composer:
    """Composes the config of each run of a sweep: it is the config that Hydra composes, in a fortieth of the time.

    Hydra reads and merges the files that the config groups choose, and then sets the overrides that are values, such as
    `seed=1`. Here the files are read once for each choice of groups; the values of each run are set on a copy.

    `loader`: Hydra's config loader. `config`: Hydra's config of the sweep.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self.loader, self.config = loader, config
        self._sets_value: dict[tuple[str, bool], bool] = {}
        self._bases: dict[tuple[str, ...], bytes] = {}  # pickled, because config objects are large

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of the run with these overrides (`key=value` texts); the caller may change it.

        Where setting a value fails, or an override does more than set one, Hydra composes the config as a whole. Raises what
        Hydra raises if an override is wrong.
        """
        try:
            parsed = [_parse(text) for text in overrides]
            self._find_groups(parsed)
            if all(_can_be_set(override) for override in parsed if self._sets_value[_kind(override)]):
                return self._with_values(parsed)
        except Exception:  # Hydra raises its own below
            pass
        return self.loader.load_sweep_config(self.config, list(overrides))

    def _find_groups(self, overrides: Sequence[Override]) -> None:
        """Make sure that `_sets_value` says of each override whether it sets a value or is of a config group."""
        if all(_kind(override) in self._sets_value for override in overrides):
            return
        texts = [*self.config.hydra.overrides.hydra, *(str(override.input_line) for override in overrides)]
        defaults = self.loader.compute_defaults_list(self.config.hydra.job.config_name, texts, RunMode.RUN)
        values = {override.input_line for override in defaults.config_overrides}
        self._sets_value |= {_kind(override): override.input_line in values for override in overrides}

    def _with_values(self, overrides: Sequence[Override]) -> DictConfig:
        """Return the config that the overrides of groups choose, with the values set as Hydra sets them."""
        chosen = tuple(str(override.input_line) for override in overrides if not self._sets_value[_kind(override)])
        if chosen not in self._bases:
            self._bases[chosen] = pickle.dumps(self.loader.load_sweep_config(self.config, list(chosen)))
        composed: DictConfig = pickle.loads(self._bases[chosen])
        for override in overrides:
            if self._sets_value[_kind(override)]:
                key, value, force_add = override.key_or_group, override.value(), override.is_force_add()
                OmegaConf.update(composed, key, value, merge=True, force_add=force_add)
        composed.hydra.overrides.task.clear()
        composed.hydra.overrides.task.extend([override.input_line for override in overrides])
        if not HYDRA_1_4:  # which computes it when it is read
            composed.hydra.job.override_dirname = _directory_name(composed, overrides)
        OmegaConf.copy_cache(self.config, composed)  # keeps the sweep's start time, which is in its folder's name
        return composed


@lru_cache(maxsize=256)
def _parse(text: str) -> Override:
    """Return the override that Hydra reads in a text `key=value`. Raises Hydra's error if it cannot."""
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


def _kind(override: Override) -> tuple[str, bool]:
    """Return what decides whether an override sets a value or chooses a file: its key, and whether its value is a dict."""
    return override.get_key_element(), isinstance(override.value(), dict)


def _can_be_set(override: Override) -> bool:
    """Return whether an override only sets a value, outside of Hydra's own node."""
    is_hydras = override.key_or_group == "hydra" or override.is_hydra_override()
    return override.type in SETTERS and override.package is None and not is_hydras and not override.is_sweep_override()


def _directory_name(composed: DictConfig, overrides: Sequence[Override]) -> str:
    """Return `hydra.job.override_dirname` of Hydra 1.3."""
    from hydra._internal.config_loader_impl import get_overrides_dirname

    options = composed.hydra.job.config.override_dirname
    return get_overrides_dirname(
        overrides=list(overrides),
        kv_sep=options.kv_sep,
        item_sep=options.item_sep,
        exclude_keys=options.exclude_keys,
    )


class ComposedConfigLoader:
    """A Hydra config loader that gives a run of a sweep the config that the sweep's process composed.

    In another process, which gets a pickled copy, it reads the config from a file in `folder`. If it cannot, it composes it.
    """

    def __init__(self, composer: Composer, folder: Path) -> None:
        self.loader, self.composer, self.folder = composer.loader, composer, folder

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "composer": None}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the config of the run with the overrides `sweep_overrides`; `master_config` is that of the whole sweep."""
        if self.composer is not None:
            return self.composer.compose(sweep_overrides)
        try:
            config: DictConfig = pickle.loads(config_file(self.folder, sweep_overrides).read_bytes())
        except Exception:  # the file is gone, damaged, or on a disk that this machine does not see
            return self.loader.load_sweep_config(master_config, sweep_overrides)
        OmegaConf.copy_cache(master_config, config)
        return config

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet while the object is copied
            raise AttributeError(name)
        return getattr(self.loader, name)


@contextmanager
def composed_for_workers(
    context: HydraContext, composer: Composer, override_lists: Iterable[Sequence[str]], sweep: Path
) -> Iterator[HydraContext]:
    """Yield a copy of Hydra's `context` with which no process composes a config that this one has composed.

    `override_lists`: those of the runs whose configs other processes need; they are written to a hidden folder in the folder
    `sweep`, which is removed at the end of the block.
    """
    folder = sweep / CONFIGS
    with suppress(OSError):  # of a full disk; the workers then compose
        for overrides in override_lists:
            folder.mkdir(exist_ok=True)
            config_file(folder, overrides).write_bytes(pickle.dumps(composer.compose(overrides)))
    loader: Any = ComposedConfigLoader(composer, folder)
    try:
        yield replace(context, config_loader=loader)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def config_file(folder: Path, overrides: Sequence[str]) -> Path:
    """Return the file in `folder` for the composed config of the run with these overrides."""
    return folder / hashlib.sha256(json.dumps(list(overrides)).encode()).hexdigest()[:32]

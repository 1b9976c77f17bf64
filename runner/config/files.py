"""The files of the folder `conf`: the config groups, their choices, and what a file sets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from runner.config.schema import CONF

TEXT_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # reads every value as text, in a tenth of the time


def config_groups() -> list[str]:
    """Return the names of the config groups, such as `model` and `optimizer`: the subfolders of the folder `conf`."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def choices_of(group: str) -> list[str]:
    """Return the choices of a config group: the names of its files in the folder `conf`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def texts_in(group: str, choice: str) -> dict[str, Any]:
    """Return what the file of a choice sets, as {key: value}; single values are texts, interpolations as they stand."""
    return yaml.load((CONF / group / f"{choice}.yaml").read_bytes(), TEXT_LOADER) or {}


def values_in(group: str, choice: object) -> Mapping[str, Any]:
    """Return what the file of a choice sets, as {key: value}, interpolations as they stand; do not change the result.

    It is empty if there is no such file, as for a choice in a folder of the user's.
    """
    file = CONF / group / f"{choice}.yaml"
    return _read(file, file.stat().st_mtime_ns) if file.is_file() else {}


@lru_cache(maxsize=256)
def _read(file: Path, changed: int) -> Mapping[str, Any]:
    """Return what a file sets, read once for all runs of a sweep; `changed` is when it was last changed."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]

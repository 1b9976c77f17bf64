"""The files of the folder `conf`: the config groups, their choices, and what a file sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
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


@cache
def texts_in(group: str, choice: str) -> dict[str, Any]:
    """Return what the file of a choice sets, as {key: value}; single values are texts, interpolations as they stand."""
    return yaml.load((CONF / group / f"{choice}.yaml").read_bytes(), TEXT_LOADER) or {}


@cache
def defaults_of_config() -> tuple[dict[str, str], dict[str, Any]]:
    """Return ({config group: its choice}, values) of `config.yaml`, as texts, without what it sets of Hydra's own."""
    values = yaml.load((CONF / "config.yaml").read_bytes(), TEXT_LOADER)
    chosen = {group: name for each in values["defaults"] if isinstance(each, dict) for group, name in each.items()}
    return chosen, {key: value for key, value in values.items() if key not in ("defaults", "hydra")}


@cache
def words_in_files() -> set[str]:
    """Return all words in all files of `conf`: a key that is none of them is in no config, whatever is chosen."""
    return {word for path in CONF.rglob("*.yaml") for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}


@cache
def only_recipes_set_keys_of_other_groups(recipes: tuple[str, ...]) -> bool:
    """Return whether each file sets nothing but the keys of its group, except for those of the groups `recipes`."""
    others = [path for path in CONF.rglob("*.yaml") if path.parent != CONF and path.parent.name not in recipes]
    return not any(re.search(r"@package|^defaults\b", path.read_text(encoding="utf-8"), re.M) for path in others)


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

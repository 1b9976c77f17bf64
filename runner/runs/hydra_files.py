"""Read what Hydra wrote into a run's folder: the composed config and the overrides. All values are read as text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from runner.contract import HYDRA
from runner.runs.text import MAX_ITEMS, printable

LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # reads every value as text, and builds no objects
MAX_OVERRIDE = 20_000  # characters of one override
MAX_VALUES = 5000  # of one config: YAML aliases in a small file can expand to more than fits into memory


def read_config(folder: Path) -> dict[str, str]:
    """Return the config that Hydra wrote to a run's folder, as {dotted key: value as text}.

    The items of a list are joined to one text, separated by commas. At most MAX_VALUES values are read. The dict is empty if
    the file cannot be read.
    """
    texts_by_key: dict[str, list[str]] = {}
    try:
        for key, text in islice(_flat_items(_read_yaml(folder / HYDRA / "config.yaml"), ""), MAX_VALUES):
            texts_by_key.setdefault(key, []).append(text)
    except RecursionError:  # an alias that refers to itself
        return {}
    return {printable(key): printable(", ".join(texts)) for key, texts in texts_by_key.items() if key}


def read_overrides(folder: Path) -> list[str]:
    """Return the overrides (`key=value` texts) of a run, from the file that Hydra wrote to the run's folder.

    The list is empty if the file cannot be read.
    """
    overrides = _read_yaml(folder / HYDRA / "overrides.yaml")
    texts = overrides[:MAX_ITEMS] if isinstance(overrides, list) else []
    return [printable(text, MAX_OVERRIDE) for text in texts if isinstance(text, str)]


def _flat_items(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield one pair (dotted key, value as text) for each single value inside nested dicts and lists.

    `node`: the nested dicts and lists. `key`: the dotted key of `node` itself, "" for a whole config. All items of a list
    get the key of the list.
    """
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _flat_items(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list) and node:
        for item in node:
            yield from _flat_items(item, key)
    else:
        yield key, str(node)


def _read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, with numbers and other single values as text; None if it cannot be read."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None

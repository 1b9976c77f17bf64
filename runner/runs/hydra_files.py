"""What Hydra left in a run folder: the composed config and the overrides, as texts; no tag in them builds anything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from runner.contract import HYDRA
from runner.runs.text import clean

LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every value stays text
LEAVES = 5000  # of one config; a file of aliases could unfold into more than any memory holds


def read_config(folder: Path) -> dict[str, str]:
    """The composed config of a run, flat: dotted keys and texts; empty where it cannot be read."""
    flat: dict[str, list[str]] = {}
    try:
        for key, text in islice(_leaves(_yaml(folder / HYDRA / "config.yaml"), ""), LEAVES):
            flat.setdefault(key, []).append(text)
    except RecursionError:  # an alias of itself
        return {}
    return {clean(key): clean(", ".join(texts)) for key, texts in flat.items() if key}


def read_overrides(folder: Path) -> list[str]:
    """The overrides of a run that left no record; none where they cannot be read."""
    given = _yaml(folder / HYDRA / "overrides.yaml")
    return [clean(text) for text in given if isinstance(text, str)] if isinstance(given, list) else []


def _leaves(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list) and node:
        for item in node:
            yield from _leaves(item, key)
    else:
        yield key, str(node)


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None

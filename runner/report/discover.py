"""The run folders below some folders, each once, under names that tell them apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.contract import HYDRA
from runner.errors import ConfigError
from runner.runs.read import is_run


@dataclass
class Found:
    """The run folders by their labels, how many folders are other projects' runs, and what could not be looked into."""

    runs: dict[str, Path] = field(default_factory=dict)
    foreign: int = 0
    remarks: list[str] = field(default_factory=list)


def find(folders: Sequence[Path]) -> Found:
    """Every run folder at or below the given ones, at any depth; raises ConfigError where one of them is no folder."""
    found, seen = Found(), set()
    for top in folders:
        if not top.is_dir():
            what = "is a file; give the folder that it lies in" if top.exists() else "does not exist"
            raise ConfigError(f"{top} {what}")
        for folder in _walk(top, found):
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            if is_run(folder):
                found.runs[_label(folder, top, found)] = folder
            elif (folder / HYDRA).is_dir():
                found.foreign += 1
    return found


def _walk(top: Path, found: Found) -> Iterator[Path]:
    def said(error: OSError) -> None:
        found.remarks.append(f"{error.filename}: {error.strerror}")

    for path, below, _ in os.walk(top, onerror=said):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(path)


def _label(folder: Path, top: Path, found: Found) -> str:
    """The path below the folder that was given; where that is taken already, with that folder's name, or all of it."""
    below = folder.relative_to(top).as_posix() if folder != top else folder.resolve().name
    whole = folder.as_posix()
    return next(name for name in (below, f"{top.resolve().name}/{below}", whole) if name not in found.runs)

"""Find the run folders below some folders, and label each with a path that no other run has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.contract import HYDRA
from runner.errors import ConfigError
from runner.runs.read import is_run_folder


@dataclass
class FoundRuns:
    """Run folders by label, the number of folders of other Hydra projects, and a line for each folder that is unreadable."""

    folders: dict[str, Path] = field(default_factory=dict)
    foreign: int = 0
    problems: list[str] = field(default_factory=list)


def find_runs(tops: Sequence[Path]) -> FoundRuns:
    """Find every run folder at or below `tops`, at any depth, each once.

    Raises ConfigError if one of `tops` is not a folder.
    """
    found, seen = FoundRuns(), set()
    for top in tops:
        if not top.is_dir():
            problem = "is a file; give the folder that it lies in" if top.exists() else "does not exist"
            raise ConfigError(f"{top} {problem}")
        for folder in _walk(top, found):
            real_path = os.path.realpath(folder)
            if real_path in seen:
                continue
            seen.add(real_path)
            if is_run_folder(folder):
                found.folders[_label(folder, top, found)] = folder
            elif (folder / HYDRA).is_dir():
                found.foreign += 1
    return found


def _walk(top: Path, found: FoundRuns) -> Iterator[Path]:
    """Yield `top` and the folders below it, except those whose name begins with a dot."""

    def record_problem(error: OSError) -> None:
        found.problems.append(f"{error.filename}: {error.strerror}")

    for path, subfolders, _ in os.walk(top, onerror=record_problem):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(path)


def _label(folder: Path, top: Path, found: FoundRuns) -> str:
    """The path relative to `top`; if another run has that label, with the name of `top` in front, or else the full path."""
    relative = folder.relative_to(top).as_posix() if folder != top else folder.resolve().name
    candidates = relative, f"{top.resolve().name}/{relative}", folder.as_posix()
    return next(label for label in candidates if label not in found.folders)

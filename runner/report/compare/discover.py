"""Find the folders of runs in and below given folders, and give each a label that no other run has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.contract import HYDRA, SWEEP_PLAN
from runner.errors import ConfigError
from runner.runs.read import is_run_folder, read_record


@dataclass
class FoundRuns:
    """What `find_runs` found in and below the folders that it searched.

    Attributes:
        folders: {run label: folder of the run}.
        foreign: the number of folders that Hydra made for other projects.
        sweeps: the folders of sweeps.
        problems: a line of text for each folder that could not be read.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    foreign: int = 0
    sweeps: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_runs(tops: Sequence[Path]) -> FoundRuns:
    """Find the run folders in and below the folders `tops`, at any depth; a folder reached by several paths counts once.

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
            if (folder / SWEEP_PLAN).is_file():
                found.sweeps.append(folder)
            if "before" in (read_record(folder) or {}):
                found.problems.append(f"{folder} is the difference of two checkpoints, and no run; its page is in it")
            elif is_run_folder(folder):
                found.folders[_label(folder, top, found)] = folder
            elif (folder / HYDRA).is_dir():
                found.foreign += 1
    return found


def _walk(top: Path, found: FoundRuns) -> Iterator[Path]:
    """Yield `top` and all folders below it, except folders whose name begins with a dot.

    A line is added to `found.problems` for each folder that cannot be listed.
    """

    def record_problem(error: OSError) -> None:
        """Add a line to `found.problems` about a folder that could not be listed."""
        found.problems.append(f"{error.filename}: {error.strerror}")

    for path, subfolders, _ in os.walk(top, onerror=record_problem):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(path)


def _label(folder: Path, top: Path, found: FoundRuns) -> str:
    """Return a label for the run in `folder` that no run in `found` has.

    It is the first unused one of three: the path of `folder` relative to `top`; this relative path with the name of `top` in
    front; `folder` itself.
    """
    relative = folder.relative_to(top).as_posix() if folder != top else folder.resolve().name
    candidates = relative, f"{top.resolve().name}/{relative}", folder.as_posix()
    return next(label for label in candidates if label not in found.folders)

"""Tell apart runs of several machines, versions and dates: results differ by what a run ran on, so it splits settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runner.contract import STATUSES_WITH_TABLES
from runner.runs.read import Run
from runner.runs.text import printable

FROM = "from"  # the key of the folder that a run lies in


def with_origins(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with their `origin`: what they ran on, as far as runs that trained differ in it, and where they lie.

    The folder (of a sweep or a date) is in it only where runs with the same config and on the same machine, as far as is
    known, lie in several folders: they are repeats of one another, and not of several seeds.
    """
    trained = [run for run in runs if has_trained(run)]
    facts = {run.label: facts_of(run) for run in runs}
    keys = dict.fromkeys(key for run in trained for key in facts[run.label])
    differing = [key for key in keys if len({facts[run.label].get(key, "") for run in trained}) > 1]
    origins = {label: {key: known[key] for key in differing if known.get(key)} for label, known in facts.items()}
    places = repeated_places(trained, origins)
    return [
        replace(run, origin=origins[run.label] | ({FROM: places[run.folder.parent]} if run.folder.parent in places else {}))
        for run in runs
    ]


def facts_of(run: Run) -> dict[str, str]:
    """Return {name: value} of what a run ran on: the version of each library, the device, the number of threads.

    Device and threads are known only of a run that trained.
    """
    record = run.record
    facts = {str(name): str(version) for name, version in record["versions"].items() if version}
    if has_trained(run):
        facts |= {"device": record["device"], "threads": f"{record['threads']:g}"}
    return facts


def has_trained(run: Run) -> bool:
    """Return whether a run trained, so that its record says on what; one that was interrupted may never have begun to."""
    return run.record["status"] in STATUSES_WITH_TABLES and run.record["threads"] is not None


def repeated_places(runs: Sequence[Run], origins: dict[str, dict[str, str]]) -> dict[Path, str]:
    """Return {folder: short name} of the folders that share a run, the same config on the same machine, with another folder.

    `origins`: {run label: what it ran on}.
    """
    places: dict[tuple[object, ...], set[Path]] = defaultdict(set)
    for run in runs:
        if run.record["config_hash"]:
            places[run.record["config_hash"], tuple(origins[run.label].items())].add(run.folder.parent)
    return short_paths({folder for folders in places.values() if len(folders) > 1 for folder in folders})


def short_paths(folders: set[Path]) -> dict[Path, str]:
    """Return {folder: its last parts, as many as tell all folders apart}, such as `one/sweep` and `two/sweep`."""
    parts = {folder: folder.absolute().parts for folder in sorted(folders)}
    depth = 1
    while len({each[-depth:] for each in parts.values()}) < len({*parts.values()}):
        depth += 1
    return {folder: printable("/".join(each[-depth:])) for folder, each in parts.items()}

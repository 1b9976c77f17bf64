"""All runs of a report with what follows from them, computed once: settings, methods, costs, their ranking, what is left."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from runner.contract import SWEEP_PLAN, Cost
from runner.report.compare.costs import costs_by_run
from runner.report.compare.equivalence import compare_trained_parts
from runner.report.compare.grouping import group_by_method, sort_runs
from runner.report.compare.methods import MethodResults
from runner.report.compare.origin import with_origins
from runner.report.compare.ranking import can_compare_accuracies, rank
from runner.report.compare.settings import ALL, NOTHING, Setting, build_settings
from runner.runs.read import Run
from runner.runs.text import printable

MAX_COMMAND = 20_000  # characters
DONE = ("finished", "skipped")  # the states of a run with which a sweep does not go on
Place = tuple[str, str]


@dataclass(frozen=True)
class Planned:
    """What the sweep in a folder was to run, as its `sweep.json` says: the names of its runs' folders.

    `command`: the shell command that goes on with what is not done; empty if it is not known.
    """

    folder: Path
    runs: tuple[str, ...] = ()
    command: str = ""


class GoOn(NamedTuple):
    """What is left of a sweep: how many of how many runs are not done, and the shell command that carries them out."""

    left: int
    total: int
    command: str


@dataclass(frozen=True)
class RunSet:
    """The runs of a report.

    Attributes:
        runs: the runs, sorted by the override values in which they differ.
        title: the name of the report, such as that of the sweep's folder.
        folder: the folder in which the report is written; links on the page are relative to it.
        planned: what each sweep was to run, as far as that is known.
        problems: a line for each thing that could not be read.
    """

    runs: Sequence[Run]
    title: str
    folder: Path
    planned: Sequence[Planned] = ()
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, runs: Sequence[Run], title: str, folder: Path, **others: object) -> RunSet:
        """Return a RunSet of runs in any order; `others` are further attributes.

        Of several runs with the same label, such as those of folders whose names differ in a byte that is no text, all but
        the first get a number.
        """
        return cls(sort_runs(with_origins(_numbered(runs))), title, folder, **others)  # type: ignore[arg-type]

    @property
    def single(self) -> Run | None:
        """The run, if there is only one."""
        return self.runs[0] if len(self.runs) == 1 else None

    def link(self, run: Run, name: str = "") -> str:
        """Return the address of a run's folder, or of the file `name` in it, relative to the page; "" if there is none."""
        try:
            path = os.path.relpath(run.folder, self.folder)
        except ValueError:  # on another drive
            return ""
        return quote(os.fsencode(Path(path, name).as_posix()), safe="/") + ("" if name else "/")

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """{run label: its costs, with the shares of training everything}; see `costs_by_run`."""
        return costs_by_run(self.runs)

    @cached_property
    def trained_parts(self) -> dict[str, tuple[str, str]]:
        """{run label: (`identical` or `differs`, reason)}; see `compare_trained_parts`."""
        origins = {run.label: run.origin for run in self.runs}
        return compare_trained_parts({run.label: run.record for run in self.runs}, origins)

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings: runs that differ only in the seed, in the order of `runs`."""
        return build_settings(self.runs, self.costs)

    @cached_property
    def has_accuracies(self) -> bool:
        """Whether the settings can be compared by their accuracy on held-out data."""
        return can_compare_accuracies(self.settings)

    @cached_property
    def ranked(self) -> list[Setting]:
        """The settings, the best first; see `rank`."""
        return rank(self.settings, self.has_accuracies)

    @cached_property
    def methods(self) -> list[MethodResults]:
        """The runs of each method, without those in which nothing or everything was frozen, if there are others."""
        aside = {run.label for each in self.settings if each.no_evidence in (NOTHING, ALL) for run in each.runs}
        has_others = any(not each.no_evidence for each in self.settings)
        runs = [run for run in self.runs if run.label not in aside] if has_others else self.runs
        return [MethodResults(name, its, self.trained_parts) for name, its in group_by_method(runs).items()]

    @cached_property
    def left(self) -> dict[str, int]:
        """{state: number of runs} of the runs that are not done: `failed`, `interrupted`, `running`, `not begun`.

        A run without a record in a folder of its own is `failed`, unless it may still be in progress (`running`).
        """
        found = Counter(run.state for run in self.runs if run.state not in DONE)
        found["not begun"] = sum(self._states.get(name) is None for plan in self.planned for name in _places(plan))
        order = ("failed", "interrupted", "running", "not begun")
        return {state: found[state] for state in order if found[state]}

    @cached_property
    def to_go_on(self) -> list[GoOn]:
        """How to go on with each sweep of which something is left."""
        found = []
        for plan in self.planned:
            left = sum(self._states.get(place) not in DONE for place in _places(plan))
            if left and plan.command:
                found.append(GoOn(left, len(plan.runs), plan.command))
        return found

    @cached_property
    def _states(self) -> dict[Place, str]:
        """{where a run lies: its state}."""
        return {_place(run.folder.parent, run.folder.name): run.state for run in self.runs}

    @property
    def total(self) -> int:
        """The number of runs, those that have not begun included."""
        return len(self.runs) + self.left.get("not begun", 0)


def _numbered(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with labels that are all different: after the first `NAME` come `NAME (2)`, `NAME (3)`, ..."""
    taken: set[str] = set()
    found = []
    for run in runs:
        texts = (f"{run.label} ({number})" if number > 1 else run.label for number in count(1))
        label = next(text for text in texts if text not in taken)
        taken.add(label)
        found.append(run if label == run.label else replace(run, label=label))
    return found


def read_planned(sweep: Path) -> list[Planned]:
    """Return what `sweep.json` in a sweep's folder says, in a list; an empty list if there is none or it cannot be read."""
    try:
        content = json.loads((sweep / SWEEP_PLAN).read_text(encoding="utf-8"))
        names, command = content["runs"], content["command"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    if not isinstance(names, list) or not isinstance(command, str):
        return []
    runs = tuple(printable(name) for name in names if isinstance(name, str))
    return [Planned(sweep, runs, printable(command, MAX_COMMAND))]


def _places(plan: Planned) -> list[Place]:
    """Return where the runs of a sweep lie, or would lie if they had begun."""
    return [_place(plan.folder, name) for name in plan.runs]


def _place(sweep: Path, name: str) -> Place:
    """Return where a run lies, in a form that is equal for the same place: the sweep's real path, and the folder's name."""
    return os.path.realpath(sweep), printable(name)

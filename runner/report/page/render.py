"""Runs -> one page: a single HTML file that fetches nothing, reads without JavaScript, and sorts and filters with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from runner import __version__
from runner.report.grouping import in_order
from runner.report.ownership import GENERATOR
from runner.report.page import tables
from runner.report.recommendation import of_run, of_runs
from runner.runs.read import Run
from runner.runs.text import counted

MOST_UNREAD = 200


@dataclass(frozen=True)
class Picture:
    """A picture for within the page, and what is said below it."""

    svg: str
    said: str


def page(runs: Sequence[Run], title: str, pictures: Mapping[str, Picture], remarks: Sequence[str] = ()) -> str:
    """The page of one run or of several; `remarks` are what could not be read, beside what each run says of itself."""
    runs = in_order(runs)
    one = runs[0] if len(runs) == 1 else None
    same, machines = tables.machines_table(runs)
    sheets = [
        tables.seed_groups_table(runs),
        tables.tensors_table(one.tensors) if one and one.tensors else None,
        tables.runs_table(runs),
        tables.leaks_table(runs) if not one else None,
        tables.failures_table(runs),
        tables.commands_table(runs),
        machines,
    ]
    environment = Environment(
        loader=PackageLoader("runner.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context: dict[str, Any] = {
        "generator": Markup(f'{GENERATOR}{__version__}">'),
        "title": title,
        "subtitle": subtitle(runs),
        "answer": of_run(one) if one else of_runs(runs),
        "sheets": {sheet.key: sheet for sheet in sheets if sheet and sheet.rows},
        "pictures": {key: {"svg": Markup(picture.svg), "said": picture.said} for key, picture in pictures.items()},
        "many": not one,
        "same": same,
        "unread": unread(runs, remarks),
    }
    return environment.get_template("page.html.jinja").render(context)


def subtitle(runs: Sequence[Run]) -> str:
    """How many runs there are, and how they ended."""
    statuses: dict[str, int] = {}
    for run in runs:
        statuses[run.record["status"]] = statuses.get(run.record["status"], 0) + 1
    return f"{counted(len(runs), 'run')}: {', '.join(f'{number:,} {status}' for status, number in statuses.items())}"


def unread(runs: Sequence[Run], remarks: Sequence[str] = ()) -> list[str]:
    """What could not be read, a line each, and of very many how many more there are."""
    lines = [*remarks, *(f"{run.label}: {problem}" for run in runs for problem in run.problems)]
    return lines if len(lines) <= MOST_UNREAD else [*lines[:MOST_UNREAD], f"and {len(lines) - MOST_UNREAD:,} more"]

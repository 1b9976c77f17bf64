"""Render one HTML page that loads nothing else. It is readable without JavaScript, which only sorts and filters tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from runner import __version__
from runner.report.grouping import sort_runs
from runner.report.ownership import GENERATOR_TAG
from runner.report.page import tables
from runner.report.page.accuracy import accuracy_table
from runner.report.recommendation import summarize_run, summarize_runs
from runner.runs.read import Run
from runner.runs.text import counted

MAX_PROBLEMS = 200


@dataclass(frozen=True)
class Picture:
    """A figure of the page: the SVG as a text, and the caption below it."""

    svg: str
    caption: str


def render_page(runs: Sequence[Run], title: str, pictures: Mapping[str, Picture], problems: Sequence[str] = ()) -> str:
    """Return the HTML page about one or several runs.

    `pictures`: {name: figure}, where a name is `heatmap` or `losses`. `problems`: lines about folders that could not be
    read.
    """
    runs = sort_runs(runs)
    single = runs[0] if len(runs) == 1 else None
    common_facts, machines = tables.machines_table(runs)
    page_tables = [
        accuracy_table(runs) if not single else None,
        tables.seed_groups_table(runs),
        tables.tensors_table(single.tensors) if single and single.tensors else None,
        tables.runs_table(runs),
        tables.leaks_table(runs) if not single else None,
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
        "generator": Markup(f'{GENERATOR_TAG}{__version__}">'),
        "title": title,
        "subtitle": subtitle(runs),
        "summary": summarize_run(single) if single else summarize_runs(runs),
        "tables": {table.key: table for table in page_tables if table and table.rows},
        "pictures": {key: {"svg": Markup(picture.svg), "caption": picture.caption} for key, picture in pictures.items()},
        "many": not single,
        "common_facts": common_facts,
        "problems": problem_lines(runs, problems),
    }
    return environment.get_template("page.html.jinja").render(context)


def subtitle(runs: Sequence[Run]) -> str:
    """Return how many runs have each status, as a text such as `7 runs: 6 finished, 1 failed`."""
    statuses = Counter(run.record["status"] for run in runs)
    return f"{counted(len(runs), 'run')}: {', '.join(f'{number:,} {status}' for status, number in statuses.items())}"


def problem_lines(runs: Sequence[Run], problems: Sequence[str] = ()) -> list[str]:
    """Return the lines `problems`, then a line for each file of a run that could not be read.

    At most MAX_PROBLEMS lines are returned. If there are more, one further line gives the number of lines left out.
    """
    lines = [*problems, *(f"{run.label}: {problem}" for run in runs for problem in run.problems)]
    return lines if len(lines) <= MAX_PROBLEMS else [*lines[:MAX_PROBLEMS], f"and {len(lines) - MAX_PROBLEMS:,} more"]

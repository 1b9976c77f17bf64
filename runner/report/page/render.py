"""Render one HTML page that loads nothing else. It is readable without JavaScript, which only sorts and filters tables."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from runner import __version__
from runner.report.answer.answer import answer
from runner.report.compare.run_set import RunSet
from runner.report.comparison_json import comparison_json, json_text
from runner.report.ownership import GENERATOR_TAG
from runner.report.page.config import commands_section, machines_section, shared_section
from runner.report.page.costs import costs_section
from runner.report.page.elements import Section
from runner.report.page.failures import failures_section
from runner.report.page.heatmap import heatmap_section
from runner.report.page.leaks import leaks_section
from runner.report.page.losses import losses_section
from runner.report.page.matrix import matrix_section
from runner.report.page.moved import moved_section
from runner.report.page.phases import phases_section
from runner.report.page.runs import runs_section
from runner.runs.text import counted, cut

MAX_PROBLEMS = 200
SECTIONS = (
    matrix_section,
    costs_section,
    leaks_section,
    moved_section,
    heatmap_section,
    losses_section,
    phases_section,
    failures_section,
    runs_section,
    shared_section,
    commands_section,
    machines_section,
)


def render_page(run_set: RunSet, reload_seconds: float | None = None) -> str:
    """Return the HTML page about one or several runs.

    `reload_seconds`: after how many seconds the page loads itself again, while a sweep is running; None: never.
    """
    sections = [section for build in SECTIONS if (section := build(run_set))]
    if problems := problem_lines(run_set):
        sections.append(Section("problems", "What could not be read", "lines", {"lines": problems}))
    context: dict[str, Any] = {
        "generator": Markup(f'{GENERATOR_TAG}{__version__}">'),
        "title": run_set.title,
        "subtitle": subtitle(run_set),
        "answer": answer(run_set),
        "to_go_on": run_set.to_go_on,
        "sections": sections,
        "styles": Markup(styles()),
        "reload_seconds": reload_seconds,
        "comparison": Markup(json_text(comparison_json(run_set)).replace("<", "\\u003c")),
    }
    return environment().get_template("page.html.jinja").render(context)


@cache
def environment() -> Environment:
    """Return the environment of the page's templates, which escapes every text; they fold long ones with `cut`."""
    made = Environment(
        loader=PackageLoader("runner.report.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["cut"] = cut
    made.filters["breakable"] = breakable
    return made


def breakable(text: str) -> Markup:
    """Return a text, escaped, that a browser may break after `_` and `.` before it breaks it within a word."""
    return Markup(re.sub(r"(?<=[_.])(?=\w)", "<wbr>", escape(text)))


@cache
def styles() -> str:
    """Return the CSS of the page: `styles/base.css`, then the file of each section."""
    folder = files("runner.report.page").joinpath("styles")
    sheets = sorted((sheet for sheet in folder.iterdir()), key=lambda sheet: (sheet.name != "base.css", sheet.name))
    return "".join(sheet.read_text(encoding="utf-8") for sheet in sheets if sheet.name.endswith(".css"))


def subtitle(run_set: RunSet) -> str:
    """Return how many runs have each status, as a text such as `7 runs: 6 finished, 1 failed`."""
    states = Counter(run.state for run in run_set.runs)
    states.update({"not begun": run_set.left["not begun"]} if "not begun" in run_set.left else {})
    return f"{counted(run_set.total, 'run')}: {', '.join(f'{number:,} {state}' for state, number in states.items())}"


def problem_lines(run_set: RunSet) -> list[str]:
    """Return the problems of the report, then a line for each file of a run that could not be read.

    At most MAX_PROBLEMS lines are returned. If there are more, one further line gives the number of lines left out.
    """
    lines = [*run_set.problems, *(f"{run.label}: {problem}" for run in run_set.runs for problem in run.problems)]
    return lines if len(lines) <= MAX_PROBLEMS else [*lines[:MAX_PROBLEMS], f"and {len(lines) - MAX_PROBLEMS:,} more"]

"""Runs -> one page: a single HTML file that fetches nothing, reads without JavaScript, and sorts and filters with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from runner import __version__
from runner.report import sheets
from runner.report.answer import of_run, of_runs
from runner.report.keys import in_order, names
from runner.report.ours import GENERATOR
from runner.report.text import counted
from runner.runs.read import Run

MOST_CURVES, MOST_UNREAD = 200, 200


@dataclass(frozen=True)
class Picture:
    """A picture for within the page, and what is said below it."""

    svg: str
    said: str


def page(runs: Sequence[Run], title: str, pictures: Mapping[str, Picture], remarks: Sequence[str] = ()) -> str:
    """The page of one run or of several; `remarks` are what could not be read, beside what each run says of itself."""
    runs = in_order(runs)
    one = runs[0] if len(runs) == 1 else None
    same, machines = sheets.machines_sheet(runs)
    tables = [
        sheets.cells_sheet(runs),
        sheets.tensors_sheet(one.tensors) if one and one.tensors else None,
        sheets.runs_sheet(runs),
        sheets.leaks_sheet(runs) if not one else None,
        sheets.failures_sheet(runs),
        sheets.commands_sheet(runs),
        machines,
    ]
    environment = Environment(
        loader=PackageLoader("runner.report", "."),
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
        "sheets": {sheet.key: sheet for sheet in tables if sheet and sheet.rows},
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


def curves(runs: Sequence[Run]) -> tuple[dict[str, list[float]], str]:
    """The losses of the runs, those that are equal to the last bit as one curve, and what a reader should know of them."""
    short = names(runs)
    alike: dict[tuple[float, ...], list[str]] = {}
    for run in runs:
        if run.losses:
            alike.setdefault(tuple(run.losses), []).append(short[run.label])
    picked = list(alike.items())[:MOST_CURVES]
    found = {
        own[0] if len(own) == 1 else f"{own[0]} and {len(own) - 1} more with the same bits": list(curve)
        for curve, own in picked
    }
    total = sum(map(len, alike.values()))
    said = (
        f"{counted(len(alike), 'curve')} of {counted(total, 'run')}: runs whose losses are equal to the last bit share one."
    )
    return found, said + (f" Shown are the first {len(picked)}." if len(picked) < len(alike) else "")

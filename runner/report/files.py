"""Write the files of the report: CSV tables, HTML page and heatmap for a sweep, the HTML page for a single run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from runner.contract import CHANGES, COMPARISON, COMPARISON_JSON, FAILURES, HEATMAP_PNG, HEATMAP_SVG, PAGE
from runner.report.compare.run_set import RunSet, read_planned
from runner.report.comparison_json import comparison_json, json_text
from runner.report.figures import draw
from runner.report.figures.heatmap import build_heatmap, heatmap_texts
from runner.report.ownership import may_overwrite
from runner.report.page.render import render_page
from runner.runs.folder import write_atomically
from runner.runs.read import Run, read_run, run_folders
from runner.runs.text import error_line, printable


def write_sweep_files(sweep: Path, kept: dict[Path, Run] | None = None) -> RunSet:
    """Write all tables, the HTML page and the heatmap into the folder `sweep`; return what they were made from.

    A file that freeze-runner did not write is not overwritten; a line on stderr says so. `kept`: see `read_sweep`. Raises
    OSError if a file cannot be written.
    """
    from runner.report.comparison import write_joined_changes  # imports pandas

    run_set = read_sweep(sweep, kept)
    refused = write_page_and_tables(run_set)
    if heatmap := build_heatmap(run_set.runs):
        figure = draw.draw_heatmap(heatmap)
        svg, png = draw.as_svg(figure, *heatmap_texts(heatmap)), draw.as_png(figure)
        refused += _write(sweep / HEATMAP_SVG, partial(_write_text, text=svg))
        refused += _write(sweep / HEATMAP_PNG, lambda path: path.write_bytes(png))
    refused += _write(sweep / CHANGES, lambda path: write_joined_changes(run_set.runs, path))
    for line in refused:
        print(error_line(line), file=sys.stderr)
    return run_set


def read_sweep(sweep: Path, kept: dict[Path, Run] | None = None) -> RunSet:
    """Read the runs in a sweep's folder, and what it was to run.

    `kept`: {folder: run} of runs that were read before and had finished: they are not read again, and the dict gets those
    that have finished since. Any other run is read again, since a sweep that is resumed may carry it out again.
    """
    kept = {} if kept is None else kept
    runs = [kept.get(folder) or read_run(folder) for folder in run_folders(sweep)]
    kept |= {run.folder: run for run in runs if run.finished and not run.problems}
    return RunSet.of(runs, printable(sweep.resolve().name), sweep, planned=read_planned(sweep))


def write_page_and_tables(run_set: RunSet, reload_seconds: int | None = None) -> list[str]:
    """Write what needs no more than the runs as they were read: the page, and the tables that have a row for each run.

    Returns a line for each file that was not overwritten, because freeze-runner did not write it. `reload_seconds`: see
    `render_page`. Raises OSError if a file cannot be written.
    """
    from runner.report.comparison import comparison_csv, failures_csv  # imports pandas

    texts = {
        COMPARISON: comparison_csv(run_set),
        COMPARISON_JSON: json_text(comparison_json(run_set), indent=1),
        FAILURES: failures_csv(run_set.runs),
        PAGE: render_page(run_set, reload_seconds),
    }
    lines = (_write(run_set.folder / name, partial(_write_text, text=text)) for name, text in texts.items())
    return [line for each in lines for line in each]


def write_run_page(folder: Path) -> None:
    """Write the HTML page of the run in `folder` into that folder."""
    html = render_page(RunSet.of([read_run(folder)], printable(folder.resolve().name), folder))
    for line in _write(folder / PAGE, partial(_write_text, text=html)):
        print(error_line(line), file=sys.stderr)


def _write(path: Path, write: Callable[[Path], object]) -> list[str]:
    """Write the file `path`; if a file is there that freeze-runner did not write, return a line that says so instead.

    `write` is called with the path of a temporary file, which it fills. The temporary file is then renamed to `path`.
    """
    if not may_overwrite(path, path.name):
        return [f"{path} was not written by freeze-runner, and is left as it is"]
    write_atomically(path, write)
    return []


def _write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, with its line ends unchanged on every operating system."""
    path.write_bytes(text.encode())

"""Write the files of the report: CSV tables, HTML page and heatmap for a sweep, the HTML page for a single run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from runner.contract import CHANGES, COMPARISON, COMPARISON_JSON, FAILURES, HEATMAP_PNG, HEATMAP_SVG, PAGE
from runner.report.compare.run_set import RunSet, read_planned
from runner.report.figures import draw
from runner.report.figures.heatmap import build_heatmap, heatmap_texts
from runner.report.ownership import may_overwrite
from runner.report.page.render import render_page
from runner.runs.folder import write_atomically
from runner.runs.read import read_run, run_folders
from runner.runs.text import error_line, printable


def write_sweep_files(sweep: Path, reload_seconds: float | None = None) -> RunSet:
    """Write the tables, the HTML page and the heatmap into the folder `sweep`; return what they were made from.

    All data are read from the run folders in `sweep`. A file that freeze-runner did not write is not overwritten; a line on
    stderr says so. `reload_seconds`: see `render_page`.
    """
    from runner.report.comparison import (  # imports pandas
        comparison_csv,
        comparison_json,
        failures_csv,
        write_joined_changes,
    )

    runs = [read_run(folder) for folder in run_folders(sweep)]
    run_set = RunSet.of(runs, printable(sweep.resolve().name), sweep, planned=read_planned(sweep))
    texts = {
        COMPARISON: comparison_csv(run_set),
        COMPARISON_JSON: json.dumps(comparison_json(run_set), indent=1) + "\n",
        FAILURES: failures_csv(run_set.runs),
    }
    if heatmap := build_heatmap(run_set.runs):
        figure = draw.draw_heatmap(heatmap)
        texts[HEATMAP_SVG], png = draw.as_svg(figure, *heatmap_texts(heatmap)), draw.as_png(figure)
        _write(sweep / HEATMAP_PNG, lambda path: path.write_bytes(png))
    for name, text in (texts | {PAGE: render_page(run_set, reload_seconds)}).items():
        _write(sweep / name, partial(_write_text, text=text))
    _write(sweep / CHANGES, lambda path: write_joined_changes(run_set.runs, path))
    return run_set


def write_run_page(folder: Path) -> None:
    """Write the HTML page of the run in `folder` into that folder."""
    html = render_page(RunSet.of([read_run(folder)], printable(folder.resolve().name), folder))
    _write(folder / PAGE, partial(_write_text, text=html))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write the file `path`, unless a file is there that freeze-runner did not write; then print a line on stderr instead.

    `write` is called with the path of a temporary file, which it fills. The temporary file is then renamed to `path`.
    """
    if may_overwrite(path, path.name):
        write_atomically(path, write)
    else:
        print(error_line(f"{path} was not written by freeze-runner, and is left as it is"), file=sys.stderr)


def _write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, with its line ends unchanged on every operating system."""
    path.write_bytes(text.encode())

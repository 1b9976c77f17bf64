"""Write the files of the report: CSV tables, HTML page and heatmap for a sweep, the HTML page for a single run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract import CHANGES, COMPARISON, FAILURES, HEATMAP_PNG, HEATMAP_SVG, PAGE
from runner.report.figures import draw
from runner.report.figures.curves import loss_curves
from runner.report.figures.heatmap import MARKS, Heatmap, build_heatmap
from runner.report.ownership import may_overwrite
from runner.report.page.render import Picture, render_page
from runner.runs.folder import write_atomically
from runner.runs.read import Run, read_run, run_folders
from runner.runs.text import error_line, printable

if TYPE_CHECKING:
    from pandas import DataFrame


def write_sweep_files(sweep: Path) -> DataFrame:
    """Write the CSV tables, HTML page and heatmap into the folder `sweep`; return the content of `comparison.csv`.

    All data are read from the run folders in `sweep`. A file that freeze-runner did not write is not overwritten; a line on
    stderr says so.
    """
    from runner.report.comparison import comparison_table, failures_table, write_joined_changes  # imports pandas

    runs = [read_run(folder) for folder in run_folders(sweep)]
    comparison, failures = comparison_table(runs), failures_table(runs)
    _write(sweep / COMPARISON, lambda path: _write_text(path, comparison.to_csv(index=False, lineterminator="\n")))
    _write(sweep / CHANGES, lambda path: write_joined_changes(runs, path))
    _write(sweep / FAILURES, lambda path: _write_text(path, failures.to_csv(index=False, lineterminator="\n")))
    if heatmap := build_heatmap(runs):
        figure = draw.draw_heatmap(heatmap)
        svg, png = draw.as_svg(figure, *heatmap_texts(heatmap)), draw.as_png(figure)
        _write(sweep / HEATMAP_SVG, lambda path: _write_text(path, svg))
        _write(sweep / HEATMAP_PNG, lambda path: path.write_bytes(png))
    html = build_page(runs, printable(sweep.resolve().name), svg if heatmap else None, heatmap)
    _write(sweep / PAGE, lambda path: _write_text(path, html))
    return comparison


def write_run_page(folder: Path) -> None:
    """Write the HTML page of the run in `folder` into that folder."""
    html = build_page([read_run(folder)], printable(folder.resolve().name))
    _write(folder / PAGE, lambda path: _write_text(path, html))


def build_page(
    runs: Sequence[Run], title: str, svg: str | None = None, heatmap: Heatmap | None = None, problems: Sequence[str] = ()
) -> str:
    """Return the HTML page about `runs`, with the loss curves and, for several runs, a heatmap.

    `svg`: the heatmap as the text of an SVG. `heatmap`: the heatmap's data. Each of the two is made here if it is None.
    `problems`: lines about folders that could not be read.
    """
    pictures = {}
    if len(runs) > 1 and (heatmap := heatmap or build_heatmap(runs)):
        svg = svg or draw.as_svg(draw.draw_heatmap(heatmap), *heatmap_texts(heatmap))
        pictures["heatmap"] = Picture(draw.svg_for_page(svg, "heatmap"), heatmap.caption)
    curves, caption = loss_curves(runs)
    if curves:
        line = draw.as_svg(draw.draw_losses(curves), "Losses", f"The loss after each step. {caption}")
        pictures["losses"] = Picture(draw.svg_for_page(line, "losses"), caption)
    return render_page(runs, title, pictures, problems)


def heatmap_texts(heatmap: Heatmap) -> tuple[str, str]:
    """Return a title and a description of the heatmap, for readers who cannot see the picture."""
    size = f"{len(heatmap.rows)} rows of parameters and buffers, {len(heatmap.columns)} columns of runs"
    return "How far each parameter moved in each run", f"{size}. {heatmap.caption} Marks: {', '.join(MARKS.values())}."


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

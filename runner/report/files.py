"""Write the tables, the page and the heatmap of a sweep, and the page of a single run."""

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
from runner.runs.text import printable

if TYPE_CHECKING:
    from pandas import DataFrame


def write_sweep_files(sweep: Path) -> DataFrame:
    """Write a sweep's tables, page and heatmap, all read from its run folders; returns the comparison table.

    A file that this project did not write is not overwritten; a line on stderr says so.
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
    """Write the page of one run into its folder."""
    html = build_page([read_run(folder)], printable(folder.resolve().name))
    _write(folder / PAGE, lambda path: _write_text(path, html))


def build_page(
    runs: Sequence[Run], title: str, svg: str | None = None, heatmap: Heatmap | None = None, problems: Sequence[str] = ()
) -> str:
    """The HTML page of some runs, with its figures; `svg` and `heatmap` are given if the heatmap is already drawn."""
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
    """The heatmap's title and description, for readers who cannot see it."""
    size = f"{len(heatmap.rows)} rows of parameters and buffers, {len(heatmap.columns)} columns of runs"
    return "How far each parameter moved in each run", f"{size}. {heatmap.caption} Marks: {', '.join(MARKS.values())}."


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path and rename the result to `path`, unless a file of somebody else is there."""
    if may_overwrite(path, path.name):
        write_atomically(path, write)
    else:
        print(f"freeze-runner: {path} was not written by freeze-runner, and is left as it is", file=sys.stderr)


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())

"""The files that stand beside runs: a sweep's tables, page and pictures, and the page of a single run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract import CHANGES, COMPARISON, FAILURES, HEATMAP_PNG, HEATMAP_SVG, PAGE
from runner.report.figures import draw
from runner.report.figures.curves import curves
from runner.report.figures.heatmap import MARKS, Heatmap, heatmap_of
from runner.report.ownership import ours
from runner.report.page.render import Picture, page
from runner.runs.folder import write_whole
from runner.runs.read import Run, read_run, run_folders
from runner.runs.text import clean

if TYPE_CHECKING:
    from pandas import DataFrame


def write_sweep_files(sweep: Path) -> DataFrame:
    """Write a sweep's tables, page and pictures from its run folders; returns the comparison.

    A file that this project did not write is left as it is, and that is said on stderr.
    """
    from runner.report.comparison import comparison, failures, join_changes  # here, for a single run needs no pandas

    runs = [read_run(folder) for folder in run_folders(sweep)]
    table, failed = comparison(runs), failures(runs)
    _write(sweep / COMPARISON, lambda beside: _text(beside, table.to_csv(index=False, lineterminator="\n")))
    _write(sweep / CHANGES, lambda beside: join_changes(runs, beside))
    _write(sweep / FAILURES, lambda beside: _text(beside, failed.to_csv(index=False, lineterminator="\n")))
    if drawn := heatmap_of(runs):
        figure = draw.heatmap(drawn)
        svg, png = draw.as_svg(figure, *described(drawn)), draw.as_png(figure)
        _write(sweep / HEATMAP_SVG, lambda beside: _text(beside, svg))
        _write(sweep / HEATMAP_PNG, lambda beside: beside.write_bytes(png))
    html = page_of(runs, clean(sweep.resolve().name), svg if drawn else None, drawn)
    _write(sweep / PAGE, lambda beside: _text(beside, html))
    return table


def write_run_page(folder: Path) -> None:
    """Write the page of one run into its folder."""
    html = page_of([read_run(folder)], clean(folder.resolve().name))
    _write(folder / PAGE, lambda beside: _text(beside, html))


def page_of(
    runs: Sequence[Run], title: str, svg: str | None = None, drawn: Heatmap | None = None, remarks: Sequence[str] = ()
) -> str:
    """The page of some runs, its pictures drawn; `svg` is the heatmap where it is drawn already."""
    shown = {}
    if len(runs) > 1 and (drawn := drawn or heatmap_of(runs)):
        svg = svg or draw.as_svg(draw.heatmap(drawn), *described(drawn))
        shown["heatmap"] = Picture(draw.inline(svg, "heatmap"), drawn.said)
    found, said = curves(runs)
    if found:
        line = draw.as_svg(draw.losses(found), "Losses", f"The loss after each step. {said}")
        shown["losses"] = Picture(draw.inline(line, "losses"), said)
    return page(runs, title, shown, remarks)


def described(drawn: Heatmap) -> tuple[str, str]:
    """The heatmap's title and description."""
    size = f"{len(drawn.rows)} rows of parameters and buffers, {len(drawn.columns)} columns of runs"
    return "How far each parameter moved in each run", f"{size}. {drawn.said} Marks: {', '.join(MARKS.values())}."


def _write(path: Path, write: Callable[[Path], object]) -> None:
    if ours(path, path.name):
        write_whole(path, write)
    else:
        print(f"freeze-runner: {path} was not written by freeze-runner, and is left as it is", file=sys.stderr)


def _text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())

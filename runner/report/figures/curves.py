"""Make the figures of what was measured over the training: the loss of each step, and the accuracy after each pass."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from math import ceil, nan

from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting
from runner.report.figures.chart import lay_out
from runner.report.figures.series import Figure, Series, band_text, curves_of, first_lost, lost_text, same_text
from runner.runs.read import Run

MAX_SETTINGS = 40  # of a figure
MAX_POINTS = 6000  # of all curves of a figure together; longer curves are thinned


def loss_figure(run_set: RunSet) -> Figure | None:
    """Return the figure of the loss after each step; None if no run has any."""
    return _figure(run_set, "losses-steps", "Training loss", axes=("step", "loss"), values_of=lambda run: run.losses)


def accuracy_figure(run_set: RunSet) -> Figure | None:
    """Return the figure of the accuracy on held-out data over the passes; of the loss there, if there is no accuracy."""
    measured = {key for run in run_set.runs for values in run.record["evaluation"].get("passes", []) for key in values}
    if not measured & {"accuracy", "loss"}:
        return None
    key = "accuracy" if "accuracy" in measured else "loss"

    def values_of(run: Run) -> list[float | None]:
        passes = run.record["evaluation"].get("passes", [])
        return [run.record["evaluation"].get("before", {}).get(key), *(each.get(key) for each in passes)] if passes else []

    return _figure(run_set, "losses-passes", f"Held-out {key}", axes=("pass", key), values_of=values_of, first=0)


def _figure(
    run_set: RunSet,
    key: str,
    name: str,
    *,
    axes: tuple[str, str],
    values_of: Callable[[Run], Sequence[float | None]],
    first: int = 1,
) -> Figure | None:
    """Return the figure of a value of each run over the steps or passes; None if no run has any.

    `axes`: the names of the two axes. `first`: the x of the first value.
    """
    chosen = {id(setting) for setting in run_set.ranked[:MAX_SETTINGS]}
    rows = [(each, rows) for each in run_set.settings if id(each) in chosen and (rows := _rows(each, values_of))]
    if not rows:
        return None
    longest = max(len(values) for _, each in rows for values in each)
    every = max(1, ceil(longest * len(rows) / MAX_POINTS))
    series = [_series(setting, each, every, first) for setting, each in rows]
    chart = lay_out(curves_of(series, [each.method for each in run_set.settings]), *axes)
    caption = f"{name} after each {axes[0]}{'' if first else '; 0 is before the training'}."
    caption += f" Drawn is one {axes[0]} of {every}." if every > 1 else ""
    caption += band_text(series) + same_text(series) + lost_text(series, axes[0]) + chart.beyond
    if len(run_set.settings) > MAX_SETTINGS:
        caption += f" Shown are the first {MAX_SETTINGS} of {len(run_set.settings):,} settings in the ranking."
    return Figure(key, name, caption, chart)


def _rows(setting: Setting, values_of: Callable[[Run], Sequence[float | None]]) -> list[Sequence[float | None]]:
    """Return the values of a finished run of each seed of a setting that has any; of all its runs if none finished."""
    return [values for run in setting.one_per_seed or setting.runs if (values := values_of(run))]


def _series(setting: Setting, rows: Sequence[Sequence[float | None]], every: int, first: int) -> Series:
    """Return the series of a setting: every `every`th value and the last one, as far as all its runs have values."""
    length = min(map(len, rows))
    places = [*range(0, length - 1, every), length - 1]
    columns = [(float(place + first), [row[place] for row in rows]) for place in places]
    bits = tuple(array("d", (nan if value is None else value for value in row)).tobytes() for row in rows)
    lost = first_lost(rows)
    return Series(setting.name, setting.method, columns, bits, lost=None if lost is None else float(lost + first))

"""Make the figure of a sweep over a learning rate: how a setting ended at each rate."""

from __future__ import annotations

from collections.abc import Iterator

from runner.errors import listed
from runner.report.compare.grouping import overrides_by_key, swept_keys
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting
from runner.report.figures.axis import suits_log
from runner.report.figures.chart import lay_out
from runner.report.figures.series import Figure, Series, band_text, curves_of, same_text
from runner.runs.text import parse_number

LEAST_RATES = 3  # of a curve
MAX_CURVES = 40
LOG_FACTOR = 100  # from the least to the greatest rate above 0: then a rate of 0 lies at the edge of a logarithmic scale


def rate_figures(run_set: RunSet) -> Iterator[Figure]:
    """Yield a figure for each learning rate that was swept: the accuracy or the last loss over the rate.

    A curve is of settings that differ in the rate alone, and has at least LEAST_RATES rates.
    """
    keys = [key for key in swept_keys(run_set.runs) if key.endswith("lr")] if not run_set.single else []
    what = "accuracy" if run_set.has_accuracies else "last training loss"
    for number, key in enumerate(keys):
        series = [
            _series(key, members, run_set.has_accuracies)
            for members in _settings_by_rate(run_set, key)
            if len(members) >= LEAST_RATES
        ]
        series = [each for each in series if any(values != [None] for _, values in each.columns)]
        if not series:
            continue
        name, shown = f"{what.capitalize()} by {key.lstrip('+')}", series[:MAX_CURVES]
        xs = [x for each in shown for x, _ in each.columns]
        log = min(xs) > 0 or (min(xs) == 0 and suits_log([x for x in xs if x], LOG_FACTOR))
        chart = lay_out(curves_of(shown, [each.method for each in run_set.settings]), key.lstrip("+"), what, log_x=log)
        caption = f"{name}{', on a logarithmic scale' if log else ''}.{band_text(shown)}{same_text(shown)}"
        caption += _lost(shown) + chart.beyond
        if len(shown) < len(series):
            caption += f" Shown are the first {len(shown)} of {len(series):,} curves."
        yield Figure(f"losses-rate-{number}", name, caption, chart)


def _settings_by_rate(run_set: RunSet, key: str) -> list[dict[float, Setting]]:
    """Return {rate: setting} for each set of settings that differ in the override `key`, a number, alone."""
    groups: dict[tuple[str, ...], dict[float, Setting]] = {}
    for setting in run_set.settings:
        values = overrides_by_key(setting.runs[0])
        rate = parse_number(values.get(key, ""))
        if rate is not None and abs(rate) < float("inf"):
            rest = sorted(f"{name}={value}" for name, value in values.items() if name not in (key, "seed"))
            groups.setdefault(tuple(rest), {})[rate] = setting
    return [dict(sorted(members.items())) for members in groups.values()]


def _series(key: str, members: dict[float, Setting], by_accuracy: bool) -> Series:
    """Return the series of settings by their rate; a rate at which no run has a finite value has none."""
    first = next(iter(members.values()))
    given = f"{key.lstrip('+')}={overrides_by_key(first.runs[0])[key]}"
    name = " ".join(first.name.replace(given, "").split())
    columns: list[tuple[float, list[float | None]]] = []
    for rate, setting in members.items():
        values = setting.accuracies if by_accuracy else setting.losses
        whole = len(values) == len(setting.one_per_seed) > 0
        columns.append((rate, [*values] if whole else [None]))
    return Series(name or first.method, first.method, [*columns], repr(columns))


def _lost(series: list[Series]) -> str:
    """Return a sentence that lists the rates at which a run did not finish with a finite value; or ""."""
    lost = [f"{each.name} at {x:g}" for each in series for x, values in each.columns if None in values]
    return f" Not drawn, because a run has no finite value there: {listed(lost, most=6)}." if lost else ""

"""Make the comparison for programs, `comparison.json`, which the page holds too; `docs/comparison.md` describes it.

What is not known is left out, never null or 0. A number is a number, also where it was given as text on the command line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypedDict

from runner.contract import COMPARISON_SCHEMA
from runner.report.compare.grouping import overrides_by_key, swept_keys
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting
from runner.runs.read import Run
from runner.runs.text import shortened

NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][+-]?\d+)?")  # as JSON writes it, and no longer than floats can tell


MAX_VALUE = 300  # characters of a value of the command line, and of what is made of several


class ComparedRun(TypedDict, total=False):
    """A run in `comparison.json`; each key that is not known of it is missing."""

    run: str
    values: dict[str, Any]
    status: str
    reason: str
    verdict: str
    outcome: str
    counts: dict[str, int]
    seed: int
    config_hash: str
    loss_first: float
    loss_last: float
    loss_not_finite_at: int
    held_out: dict[str, float]
    trained_part: str
    trained_part_why: str
    phases: list[dict[str, Any]]
    cost: dict[str, Any]


class ComparedSetting(TypedDict, total=False):
    """A setting in `comparison.json`, runs that differ only in the seed; each key that is not known of it is missing."""

    name: str
    method: str
    frozen_set: str
    context: str
    outcome: str
    no_evidence: str
    runs: list[str]
    accuracies: list[float]
    losses: list[float]
    cost: dict[str, Any]


class Comparison(TypedDict, total=False):
    """The content of `comparison.json`."""

    schema: str
    total: int
    left: dict[str, int]
    settings: list[ComparedSetting]
    runs: list[ComparedRun]


def comparison_json(run_set: RunSet) -> Comparison:
    """Return the content of `comparison.json`: the settings, the best first, and the runs, with what is known of each."""
    keys = swept_keys(run_set.runs)
    return {
        "schema": COMPARISON_SCHEMA,
        "total": run_set.total,
        "left": run_set.left,
        "settings": [_compared_setting(setting) for setting in run_set.ranked],
        "runs": [_compared_run(run_set, run, keys) for run in run_set.runs],
    }


def json_text(comparison: Comparison, indent: int | None = None) -> str:
    """Return the comparison as JSON, in one line unless `indent` is given; it never has NaN or infinity."""
    return json.dumps(comparison, indent=indent, separators=None if indent else (",", ":"), allow_nan=False) + "\n"


def _compared_run(run_set: RunSet, run: Run, keys: list[str]) -> ComparedRun:
    """Return what is known of a run. `keys`: the overrides in which the runs differ."""
    record, given = run.record, overrides_by_key(run)
    trained_part, why = run_set.trained_parts[run.label]
    compared: ComparedRun = {
        "run": run.label,
        "values": {key.lstrip("+"): number_or_text(given[key]) for key in keys if key in given},
        "status": run.state,
        "reason": record["reason"],
        "verdict": record["verdict"] or "",
        "outcome": run.outcome,
        "counts": {word: number for word, number in record["counts"].items() if number},
        "seed": record["seed"],
        "config_hash": record["config_hash"],
        "held_out": run.held_out,  # type: ignore[typeddict-item]
        "trained_part": trained_part,
        "trained_part_why": why,
        "phases": [{key: count for key, count in phase.items() if key != "blocks"} for phase in record["phases"]],
        "cost": run_set.costs[run.label],
    }
    losses: Any = {key: record[key] for key in ("loss_first", "loss_last", "loss_not_finite_at")}  # type: ignore[literal-required]
    known: ComparedRun = _known(compared | losses)
    return known


def _compared_setting(setting: Setting) -> ComparedSetting:
    """Return what is known of a setting."""
    compared: ComparedSetting = {
        "name": setting.name,
        "method": setting.method,
        "frozen_set": setting.frozen_set,
        "context": setting.context,
        "outcome": setting.outcome,
        "no_evidence": setting.no_evidence,
        "runs": [run.label for run in setting.runs],
        "accuracies": setting.accuracies,
        "losses": setting.losses,
        "cost": setting.cost,
    }
    texts = {key: shortened(compared[key], MAX_VALUE) for key in ("name", "frozen_set", "context")}  # type: ignore[literal-required]
    known: ComparedSetting = _known(compared | texts)
    return known


def number_or_text(text: str) -> int | float | str:
    """Return a value of the command line as a number if it is one that JSON can write, else the text, cut if it is long."""
    number = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        return shortened(text, MAX_VALUE)
    return int(text) if text.lstrip("-").isdigit() else number


def _known(values: Mapping[str, Any]) -> Any:
    """Return the items that are known: not None, NaN, infinite or empty; within dicts too."""
    found = {key: _known(value) if isinstance(value, dict) else _number(value) for key, value in values.items()}
    return {key: value for key, value in found.items() if value not in (None, "", {}, [])}


def _number(value: Any) -> Any:
    """Return a value; None for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

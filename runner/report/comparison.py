"""Make the tables of a sweep: `comparison.csv`, `failures.csv`, and `changes.csv` of all runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame

from runner.contract import (
    CHANGE_COLUMNS,
    CHANGES,
    FAILURE_COLUMNS,
    LOG,
    OUTCOME_COLUMNS,
    STATUSES_WITH_TABLES,
    TEST,
)
from runner.report.compare.grouping import overrides_by_key, swept_keys
from runner.report.compare.run_set import RunSet
from runner.runs.read import Run
from runner.runs.tables import read_rows


def comparison_rows(run_set: RunSet) -> list[dict[str, Any]]:
    """Return the rows of `comparison.csv`, one per run, as dicts with the same keys.

    Columns: the run's label; a column for each command-line override that is not the same in all runs; status (`running`
    while a run is in progress); the reason if the run did not finish; the run's verdict (`held` or `leaked`); its outcome
    (the verdict, or a defect such as `nothing trained`, or the status); the number of tensors with each verdict; the first
    and the last loss, and the first step whose loss was NaN or infinite; whether the trainable parameters end with the same
    bits as under `requires_grad`, and if not, why; what was measured on held-out data after the training; the costs of a
    training step.
    """
    keys = swept_keys(run_set.runs)
    measured = dict.fromkeys(["loss", "accuracy", *(key for run in run_set.runs for key in run.held_out)])
    rows = []
    for run in run_set.runs:
        overrides, record = overrides_by_key(run), run.record
        row: dict[str, Any] = {"run": run.label, **{key: overrides.get(key, "") for key in keys}}
        row |= {"status": run.state, "reason": record["reason"], "verdict": record["verdict"], "outcome": run.outcome}
        row |= record["counts"]
        row |= {key: record[key] for key in ("loss_first", "loss_last", "loss_not_finite_at")}
        row |= dict(zip(("trained_part", "trained_part_why"), run_set.trained_parts[run.label], strict=True))
        row |= {f"{TEST}{key}": run.held_out.get(key) for key in measured}
        rows.append(row | run_set.costs[run.label])
    return rows


def comparison_csv(run_set: RunSet) -> str:
    """Return the text of `comparison.csv`."""
    rows = comparison_rows(run_set)
    return DataFrame(rows, columns=None if rows else ["run", *OUTCOME_COLUMNS]).to_csv(index=False, lineterminator="\n")


def failures_csv(runs: Sequence[Run]) -> str:
    """Return the text of `failures.csv`, one row for each run that ended and did not finish.

    Columns: the run's label, status, reason, path of the log (empty if there is none) and command-line overrides.
    """
    rows = [
        {
            "run": run.label,
            "status": run.record["status"],
            "reason": run.record["reason"],
            "log": f"{run.label}/{LOG}" if (run.folder / LOG).is_file() else "",
            "overrides": " ".join(run.record["overrides"]),
        }
        for run in runs
        if not run.finished and run.state != "running"
    ]
    return DataFrame(rows, columns=list(FAILURE_COLUMNS)).to_csv(index=False, lineterminator="\n")


def write_joined_changes(runs: Sequence[Run], target: Path) -> None:
    """Join the `changes.csv` files of all runs (a row per parameter or buffer) into one CSV file, `target`.

    The first column, `run`, is the label of the run that the row comes from. Columns that this version of freeze-runner does
    not know come last.
    """
    with_tables = [run for run in runs if run.record["status"] in STATUSES_WITH_TABLES]
    unknown: dict[str, None] = {}
    for run in with_tables:
        unknown.update(dict.fromkeys(key for row in _first_row(run) for key in row if key not in CHANGE_COLUMNS))
    columns = ["run", *CHANGE_COLUMNS, *unknown]
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        for number, run in enumerate(with_tables):
            if not number:
                writer.writeheader()
            writer.writerows({**row, "run": run.label} for row in read_rows(run.folder / CHANGES, ("name",), []))


def _first_row(run: Run) -> list[dict[str, str]]:
    """Return a list that contains only the first row of a run's `changes.csv`; the list is empty if there is no row."""
    row = next(read_rows(run.folder / CHANGES, ("name",), []), None)
    return [] if row is None else [row]

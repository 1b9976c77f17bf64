"""Make a sweep's CSV files (`comparison.csv`, `failures.csv` and `changes.csv`) and a comparison table for the terminal."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.contract import (
    CHANGE_COLUMNS,
    CHANGES,
    COSTS,
    FAILURE_COLUMNS,
    LOG,
    OUTCOME_COLUMNS,
    STATUSES_WITH_TABLES,
    TEST,
    VERDICTS,
)
from runner.display.units import in_digits
from runner.report.costs import COST_TEXTS, costs_by_run, total_flops
from runner.report.equivalence import compare_trained_parts
from runner.report.grouping import overrides_by_key, sort_runs, swept_keys
from runner.report.ranking import rank, ranking_lines
from runner.runs.console import COLOURS
from runner.runs.read import Run
from runner.runs.tables import read_rows
from runner.runs.text import MAX_CELL, shortened

MAX_PRINTED_RUNS = 200


def comparison_table(runs: Sequence[Run]) -> DataFrame:
    """Return the content of `comparison.csv`, one row per run.

    Columns: the run's label; a column for each command-line override that is not the same in all runs; status; the reason if
    the run did not finish; the run's verdict (`held` or `leaked`); its outcome (the verdict, or a defect such as `nothing
    trained`); the number of tensors with each verdict; the first and the last loss, and the first step whose loss
    was NaN or infinite; whether the trainable parameters end with the same bits as under `requires_grad`, and if not, why;
    what was measured on held-out data after the training; the costs of a training step. The attribute `ranking` has lines
    that rank the settings by their accuracy on held-out data.
    """
    keys = swept_keys(runs)
    trained_parts = compare_trained_parts({run.label: run.record for run in runs})
    costs = costs_by_run(runs)
    measured = dict.fromkeys(["loss", "accuracy", *(key for run in runs for key in run.held_out)])
    rows = []
    for run in sort_runs(runs):
        overrides, record = overrides_by_key(run), run.record
        row: dict[str, Any] = {"run": run.label, **{key: overrides.get(key, "") for key in keys}}
        row |= {key: record[key] for key in ("status", "reason", "verdict")} | {"outcome": run.outcome} | record["counts"]
        row |= {key: record[key] for key in ("loss_first", "loss_last", "loss_not_finite_at")}
        row |= dict(zip(("trained_part", "trained_part_why"), trained_parts[run.label], strict=True))
        row |= {f"{TEST}{key}": run.held_out.get(key) for key in measured}
        rows.append(row | costs[run.label])
    table = DataFrame(rows, columns=None if rows else ["run", *OUTCOME_COLUMNS])
    table.attrs["ranking"] = ranking_lines(rank(runs)) if len(runs) > 1 else []
    return table


def failures_table(runs: Sequence[Run]) -> DataFrame:
    """Return the content of `failures.csv`, one row for each run that did not finish.

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
        for run in sort_runs(runs)
        if not run.finished
    ]
    return DataFrame(rows, columns=list(FAILURE_COLUMNS))


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


def print_comparison(comparison: DataFrame, console: Console) -> None:
    """Print a table with one row per run, then a line for each run that did not finish, with the reason.

    `comparison`: what `comparison_table` returns. If it has more than MAX_PRINTED_RUNS rows, the runs with outcome `held`
    are not printed (`held`: the run finished without a defect, and every bit of the frozen tensors stayed the same). Of the
    other runs the first MAX_PRINTED_RUNS are printed, and a last line says how many runs there are, how many held and how
    many were printed.
    """
    rows = comparison.to_dict("records")
    fixed = {"run", *OUTCOME_COLUMNS, *COSTS}
    keys = [column for column in comparison.columns if column not in fixed and not column.startswith(TEST)] or ["run"]
    verdicts = [verdict for verdict in VERDICTS if rows and comparison[verdict].any()]
    trained_part = ["trained_part"] if rows and comparison["trained_part"].any() else []
    held_out = next((key for key in ("accuracy", "loss") if rows and comparison[f"{TEST}{key}"].notna().any()), "")
    cost = ["GFLOP", "of unfrozen", "saved MiB"] if any(total_flops(row) is not None for row in rows) else []
    view = Table(box=None, pad_edge=False)
    for name in (*keys, "outcome", *verdicts, "loss", *([f"held-out {held_out}"] if held_out else []), *trained_part, *cost):
        view.add_column(name, no_wrap=name != "trained_part")
    printed = rows if len(rows) <= MAX_PRINTED_RUNS else [row for row in rows if row["outcome"] != "held"][:MAX_PRINTED_RUNS]
    for row in printed:
        outcome = row["outcome"]
        cells = [escape(shortened(str(row[key]), MAX_CELL)) for key in keys]
        cells += [f"[{COLOURS.get(outcome, 'default')}]{outcome}[/]", *(str(row[verdict]) for verdict in verdicts)]
        cells += [in_digits(row["loss_last"]) or ("not finite" if row["loss_not_finite_at"] else "")]
        cells += [in_digits(row[f"{TEST}{held_out}"])] if held_out else []
        cells += [escape(": ".join(filter(None, (row["trained_part"], row["trained_part_why"]))))] if trained_part else []
        view.add_row(*cells, *(COST_TEXTS[name](row) for name in cost))
    if printed:
        console.print(view)
    if ranking := comparison.attrs.get("ranking"):
        console.print("held-out accuracy, the best first:")
        for line in ranking:
            console.print(escape(f"  {line}"))
    for row in printed:
        if row["reason"]:
            console.print(f"{escape(row['run'])}: {row['status']}: {escape(row['reason'])}")
    if len(printed) < len(rows):
        held = sum(row["outcome"] == "held" for row in rows)
        console.print(f"{len(rows):,} runs, {held:,} of them held; above: {len(printed):,} that did not hold")


def _first_row(run: Run) -> list[dict[str, str]]:
    """Return a list that contains only the first row of a run's `changes.csv`; the list is empty if there is no row."""
    row = next(read_rows(run.folder / CHANGES, ("name",), []), None)
    return [] if row is None else [row]

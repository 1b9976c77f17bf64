"""Run folders -> `comparison.csv` (a row a run), `failures.csv`, the joined `changes.csv`, and a table for the terminal."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.contract import CHANGES, COLUMNS, COSTS, FAILURE_COLUMNS, LOG, OUTCOME_COLUMNS, VERDICTS, WITH_TABLES
from runner.report.equivalence import trained_parts
from runner.report.grouping import given, in_order, swept
from runner.report.prices import costs, flops
from runner.runs.console import COLOURS
from runner.runs.read import Run
from runner.runs.tables import read_rows
from runner.runs.text import in_gflop, in_mib, in_percent

PRINTED = 200  # rows on a terminal


def comparison(runs: Sequence[Run]) -> DataFrame:
    """One row a run: its label, the overrides in which the runs differ, status, verdict, counts, losses, costs."""
    keys = swept(runs)
    trained_part = trained_parts({run.label: run.record for run in runs})
    cost = costs(runs)
    rows = []
    for run in in_order(runs):
        own, record = given(run), run.record
        row: dict[str, Any] = {"run": run.label, **{key: own.get(key, "") for key in keys}}
        row |= {key: record[key] for key in ("status", "reason", "verdict")} | record["counts"]
        row |= {key: record[key] for key in ("loss_first", "loss_last")}
        row |= dict(zip(("trained_part", "trained_part_why"), trained_part[run.label], strict=True))
        rows.append(row | cost[run.label])
    return DataFrame(rows, columns=None if rows else ["run", *OUTCOME_COLUMNS])


def failures(runs: Sequence[Run]) -> DataFrame:
    """One row for each run that did not finish: why, where its log lies, and its overrides."""
    rows = [
        {
            "run": run.label,
            "status": run.record["status"],
            "reason": run.record["reason"],
            "log": f"{run.label}/{LOG}" if (run.folder / LOG).is_file() else "",
            "overrides": " ".join(run.record["overrides"]),
        }
        for run in in_order(runs)
        if not run.finished
    ]
    return DataFrame(rows, columns=list(FAILURE_COLUMNS))


def join_changes(runs: Sequence[Run], target: Path) -> None:
    """Every row of every run that was measured, behind a first column `run`; the columns of other versions come last."""
    measured = [run for run in runs if run.record["status"] in WITH_TABLES]
    extra: dict[str, None] = {}
    for run in measured:
        extra.update(dict.fromkeys(key for row in _first_row(run) for key in row if key not in COLUMNS))
    columns = ["run", *COLUMNS, *extra]
    with target.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        for number, run in enumerate(measured):
            if not number:
                writer.writeheader()
            writer.writerows({**row, "run": run.label} for row in read_rows(run.folder / CHANGES, ("name",), []))


def print_comparison(table: DataFrame, console: Console) -> None:
    """Print what tells the runs apart, and how each ended; of very many, those that did not hold."""
    fixed = {"run", *OUTCOME_COLUMNS, *COSTS}
    keys = [column for column in table.columns if column not in fixed]
    shown = [name for name in VERDICTS if len(table) and table[name].any()]
    compared = ["trained_part"] if len(table) and table["trained_part"].any() else []
    priced = ["GFLOP", "of unfrozen", "saved MiB"] if any(flops(row) is not None for row in table.to_dict("records")) else []
    view = Table(box=None, pad_edge=False)
    for name in (*(keys or ["run"]), "answer", *shown, "loss", *compared, *priced):
        view.add_column(name, no_wrap=name != "trained_part")
    rows = table.to_dict("records")
    picked = rows if len(rows) <= PRINTED else [row for row in rows if _answer(row) != "held"][:PRINTED]
    for row in picked:
        loss = "" if row["loss_last"] != row["loss_last"] or row["loss_last"] is None else f"{row['loss_last']:.4g}"
        cells = [escape(str(row[key])) for key in keys or ["run"]]
        counts = [str(row[name]) for name in shown]
        trained_part = [": ".join(filter(None, (row["trained_part"], row["trained_part_why"])))] if compared else []
        word = _answer(row)
        price = prices(row) if priced else ()
        view.add_row(*cells, f"[{COLOURS.get(word, 'default')}]{word}[/]", *counts, loss, *map(escape, trained_part), *price)
    if picked:
        console.print(view)
    for row in picked:
        if row["reason"]:
            console.print(f"{escape(row['run'])}: {row['status']}: {escape(row['reason'])}")
    if len(picked) < len(rows):
        held = sum(_answer(row) == "held" for row in rows)
        console.print(f"{len(rows):,} runs, {held:,} of them held; shown are {len(picked):,} that did not")


def prices(cost: Mapping[Any, Any]) -> tuple[str, str, str]:
    """GFLOP of a step, that as a share of the unfrozen baseline, and MiB saved for backward; empty where unknown."""
    return in_gflop(flops(cost)), in_percent(cost.get("flops_share")), in_mib(cost.get("saved_bytes"))


def _answer(row: dict[Any, Any]) -> str:
    return str(row["verdict"] if row["status"] == "finished" and row["verdict"] else row["status"])


def _first_row(run: Run) -> list[dict[str, str]]:
    rows = read_rows(run.folder / CHANGES, ("name",), [])
    first = next(rows, None)
    return [] if first is None else [first]

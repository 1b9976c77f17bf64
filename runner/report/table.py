"""Run folders -> `comparison.csv` (a row a run), the joined `changes.csv`, and a table for the terminal."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, TextIO

from pandas import DataFrame
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.folder import CHANGES, write_text, write_whole
from runner.report.read import Record, read_record, run_folders
from runner.report.rest import rests
from runner.summary import COLOURS
from runner.verdict import VERDICTS


def write_tables(sweep: Path) -> DataFrame:
    """Write a sweep's `comparison.csv` and `changes.csv` from its run folders; returns the comparison."""
    folders = run_folders(sweep)
    table = comparison(folders)
    write_text(sweep / "comparison.csv", table.to_csv(index=False, lineterminator="\n"))
    write_whole(sweep / CHANGES, lambda beside: _join_changes(folders, beside))
    return table


def comparison(folders: list[Path]) -> DataFrame:
    """One row a run: its folder's name, the overrides in which the runs differ, status, verdict, counts, losses, costs."""
    records = {folder.name: read_record(folder) or _unrecorded() for folder in folders}
    given = {name: dict(text.split("=", 1) for text in record["overrides"]) for name, record in records.items()}
    keys = _differing(given)
    rest = rests(records)
    rows = [
        {"run": name, **{key: given[name].get(key, "") for key in keys}, **_measured(record, *rest[name])}
        for name, record in records.items()
    ]
    return DataFrame(sorted(rows, key=lambda row: [_natural(row[key]) for key in (*keys, "run")]))


def print_comparison(table: DataFrame, console: Console) -> None:
    """Print what tells the runs apart, and how each ended."""
    fixed = {"run", "reason", "loss_first", "status", "verdict", "loss_last", "rest", "rest_why", *VERDICTS}
    keys = [column for column in table.columns if column not in fixed and not column.startswith("cost/")]
    shown = [name for name in VERDICTS if len(table) and table[name].any()]
    compared = ["rest"] if len(table) and table["rest"].any() else []
    view = Table(*(keys or ["run"]), "answer", *shown, "loss", *compared, box=None, pad_edge=False)
    for row in table.to_dict("records"):
        word = row["verdict"] if row["status"] == "finished" else row["status"]
        loss = "" if row["loss_last"] != row["loss_last"] or row["loss_last"] is None else f"{row['loss_last']:.4g}"
        cells = [escape(str(row[key])) for key in keys or ["run"]]
        counts = [str(row[name]) for name in shown]
        rest = [": ".join(filter(None, (row["rest"], row["rest_why"])))] if compared else []
        view.add_row(*cells, f"[{COLOURS.get(word, 'default')}]{word}[/]", *counts, loss, *map(escape, rest))
    console.print(view)
    for row in table.to_dict("records"):
        if row["reason"]:
            console.print(f"{escape(row['run'])}: {row['status']}: {escape(row['reason'])}")


def _natural(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _measured(record: Record, rest: str, why: str) -> dict[str, Any]:
    picked = {key: record[key] for key in ("status", "reason", "verdict")}
    losses = {key: record[key] for key in ("loss_first", "loss_last")}
    compared = {"rest": rest, "rest_why": why}
    return {
        **picked,
        **record["counts"],
        **losses,
        **compared,
        **{f"cost/{key}": value for key, value in record["cost"].items()},
    }


def _unrecorded() -> Record:
    return {
        "status": "failed",
        "reason": "the run left no run.json that can be read; it was killed",
        "verdict": None,
        "counts": dict.fromkeys(VERDICTS, 0),
        "loss_first": None,
        "loss_last": None,
        "overrides": [],
        "trained_digest": None,
        "cost": {},
    }


def _differing(given: dict[str, dict[str, str]]) -> list[str]:
    """The override keys whose values are not the same in all runs; all keys where there is just one run."""
    keys = dict.fromkeys(key for overrides in given.values() for key in overrides)
    return [key for key in keys if len(given) == 1 or len({overrides.get(key) for overrides in given.values()}) > 1]


def _join_changes(folders: list[Path], target: Path) -> None:
    with target.open("w", encoding="utf-8", newline="") as out:
        header: list[str] = []
        for folder in folders:
            path = folder / CHANGES
            record = read_record(folder)
            if record and record["status"] in ("finished", "interrupted") and path.is_file():
                with path.open(encoding="utf-8", newline="") as source:
                    header = _append(folder.name, source, out, header)


def _append(run: str, source: TextIO, out: TextIO, header: list[str]) -> list[str]:
    reader, writer = csv.reader(source), csv.writer(out, lineterminator="\n")
    columns = next(reader)
    if not header:
        writer.writerow(["run", *columns])
    writer.writerows([run, *row] for row in reader)
    return columns

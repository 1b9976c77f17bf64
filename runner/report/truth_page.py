"""The truth table's rows -> `truth_table.csv` and a page to read, `truth_table.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pandas import DataFrame, read_csv

from runner.runs.folder import write_text

SETTINGS = {
    "weight_decay": {"0.0": "no weight decay", "0.1": "weight decay"},
    "frozen_from": {"1": "frozen from the start", "3": "frozen in mid-run"},
    "gradients": {"none": "gradients None", "zeros": "gradients kept as zeros"},
}
TRUTH_COLUMNS = (
    "method",
    "optimizer",
    *SETTINGS,
    "schedulers",
    "runs",
    "outcome",
    "causes",
    "trained_part",
    "foreseen",
    "reason",
)


def write_truth_table(rows: Sequence[Mapping[str, Any]], folder: Path, torch_version: str) -> None:
    """Write both files; the page names the version of torch that the outcomes are those of."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(
        folder / "truth_table.csv", DataFrame(rows, columns=list(TRUTH_COLUMNS)).to_csv(index=False, lineterminator="\n")
    )
    write_text(folder / "truth_table.md", page(read_truth_table(folder), torch_version))


def read_truth_table(folder: Path) -> DataFrame:
    """The table as text, but for the number of runs."""
    return read_csv(folder / "truth_table.csv", dtype=str, keep_default_na=False).astype({"runs": int})


def page(table: DataFrame, torch_version: str) -> str:
    """Method x optimizer: held, or under how many settings not; when, cause by cause; the rest; what a plan foresaw."""
    methods, optimizers = list(table.method.unique()), list(table.optimizer.unique())
    ran = table[table.outcome != "skipped"]
    leaked, kept = ran[ran.outcome == "leaked"], ran[ran.outcome != "leaked"]
    environment = Environment(loader=PackageLoader("runner.report", "."), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("truth_table.md.jinja").render(
        torch_version=torch_version,
        runs=table.runs.sum(),
        optimizers=optimizers,
        matrix={
            method: [_word(table[(table.method == method) & (table.optimizer == name)]) for name in optimizers]
            for method in methods
        },
        leaks=[
            (method, cause.replace("|", " and "), ", ".join(optimizers), settings)
            for (method, cause), rows in leaked.groupby(["method", "causes"], sort=False)
            for settings, optimizers in _by_settings(rows, table).items()
        ],
        rests=[
            (method, *(_runs(rows[rows.trained_part == word]) for word in ("identical", "differs")), _where(rows, table))
            for method, rows in kept[kept.trained_part != ""].groupby("method", sort=False)
        ],
        skips=[(reason, _runs(rows)) for reason, rows in table[table.outcome == "skipped"].groupby("reason")],
        ran=_runs(ran),
        unforeseen=ran[ran.foreseen != "yes"].to_dict("records"),
        unforeseen_runs=_runs(ran[ran.foreseen != "yes"]),
    )


def _word(cell: DataFrame) -> str:
    ran = cell[cell.outcome != "skipped"]
    leaked = _runs(ran[ran.outcome == "leaked"])
    if not len(ran):
        return "skipped"
    if leaked:
        return f"{leaked}/{_runs(ran)}"
    word = "*returned*" if (ran.outcome == "returned").any() else "**held**"
    return f"{word}, {_runs(cell) - _runs(ran)} skipped" if len(ran) < len(cell) else word


def _where(rows: DataFrame, table: DataFrame) -> str:
    differing = rows[rows.trained_part == "differs"]
    return f"{', '.join(differing.optimizer.unique())}: {_settings(differing, table)}" if len(differing) else ""


def _by_settings(rows: DataFrame, table: DataFrame) -> dict[str, list[str]]:
    """The optimizers that have the same settings in common."""
    found: dict[str, list[str]] = {}
    for optimizer, part in rows.groupby("optimizer", sort=False):
        found.setdefault(_settings(part, table), []).append(str(optimizer))
    return found


def _settings(rows: DataFrame, table: DataFrame) -> str:
    """What the rows have in common that not all runs with these optimizers have."""
    among = table[table.optimizer.isin(rows.optimizer.unique())]
    used, there = (sorted(set("|".join(part.schedulers).split("|"))) for part in (rows, among))
    told = [f"scheduler {', '.join(used)}"] if used != there else []
    for column, words in SETTINGS.items():
        values, all_values = (set(part[column]) & words.keys() for part in (rows, among))
        told += [words[value] for value in values if len(values) < len(all_values)]
    return ", ".join(told) or "any"


def _runs(rows: DataFrame) -> int:
    return int(rows.runs.sum())

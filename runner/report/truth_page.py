"""Write the truth table, which says for each method and optimizer whether frozen parameters kept every bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pandas import DataFrame, read_csv

from runner.runs.folder import write_text

SETTINGS = {  # column -> the text for each of its values
    "weight_decay": {"0.0": "no weight decay", "0.1": "weight decay"},
    "frozen_from": {"1": "frozen from the start", "3": "frozen in mid-run", "1|4": "frozen again"},
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
    """Write `truth_table.csv` and its summary `truth_table.md` into `folder`.

    `rows`: dicts with the keys TRUTH_COLUMNS. `torch_version`: the version of PyTorch that the runs used; `truth_table.md`
    names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(
        folder / "truth_table.csv", DataFrame(rows, columns=list(TRUTH_COLUMNS)).to_csv(index=False, lineterminator="\n")
    )
    write_text(folder / "truth_table.md", truth_table_markdown(read_truth_table(folder), torch_version))


def read_truth_table(folder: Path) -> DataFrame:
    """Return the rows of the `truth_table.csv` in `folder`; the column `runs` is int, all others are text."""
    return read_csv(folder / "truth_table.csv", dtype=str, keep_default_na=False).astype({"runs": int})


def truth_table_markdown(table: DataFrame, torch_version: str) -> str:
    """Return the text of `truth_table.md`.

    `table`: the rows of `truth_table.csv`. The text has the outcome of each method with each optimizer, why frozen
    parameters changed, where trainable parameters differ from those under `requires_grad`, why runs were skipped, and which
    outcomes were predicted wrongly. `torch_version`: as in `write_truth_table`.
    """
    methods, optimizers = list(table.method.unique()), list(table.optimizer.unique())
    ran = table[table.outcome != "skipped"]
    leaked, held = ran[ran.outcome == "leaked"], ran[ran.outcome != "leaked"]
    environment = Environment(loader=PackageLoader("runner.report", "."), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("truth_table.md.jinja").render(
        torch_version=torch_version,
        runs=table.runs.sum(),
        not_frozen_again=sorted({*_schedulers_in(table)} - {*_schedulers_in(table[table.frozen_from == "1|4"])}),
        optimizers=optimizers,
        matrix={
            method: [_outcome_text(table[(table.method == method) & (table.optimizer == name)]) for name in optimizers]
            for method in methods
        },
        leaks=[
            (method, cause.replace("|", " and "), ", ".join(optimizers), settings)
            for (method, cause), rows in leaked.groupby(["method", "causes"], sort=False)
            for settings, optimizers in _optimizers_by_settings(rows, table).items()
        ],
        trained_parts=[
            (
                method,
                *(_count_runs(rows[rows.trained_part == word]) for word in ("identical", "differs")),
                _where_different(rows, table),
            )
            for method, rows in held[held.trained_part != ""].groupby("method", sort=False)
        ],
        skipped=[(reason, _count_runs(rows)) for reason, rows in table[table.outcome == "skipped"].groupby("reason")],
        ran=_count_runs(ran),
        mispredicted=ran[ran.foreseen != "yes"].to_dict("records"),
        mispredicted_runs=_count_runs(ran[ran.foreseen != "yes"]),
    )


def _outcome_text(rows: DataFrame) -> str:
    """Return the outcome of one method with one optimizer as Markdown text.

    `rows`: the rows of the truth table with this method and this optimizer.

    `**held**`: frozen bits never changed. `*returned*`: in some runs frozen bits changed and were put back. `3/24`: in 3 of
    24 runs frozen bits ended changed. `skipped`: no run was possible. If only some runs were skipped, their number follows
    `**held**` or `*returned*`.
    """
    ran = rows[rows.outcome != "skipped"]
    leaked = _count_runs(ran[ran.outcome == "leaked"])
    if not len(ran):
        return "skipped"
    if leaked:
        return f"{leaked}/{_count_runs(ran)}"
    text = "*returned*" if (ran.outcome == "returned").any() else "**held**"
    return f"{text}, {_count_runs(rows) - _count_runs(ran)} skipped" if len(ran) < len(rows) else text


def _where_different(rows: DataFrame, table: DataFrame) -> str:
    """Return where trainable parameters differ from those under `requires_grad`, such as `adam, sgd: weight decay`.

    The text names the optimizers, then the conditions. It is empty if the parameters differ nowhere. `rows`: the rows of one
    method in which nothing leaked. `table`: all rows of the truth table.
    """
    different = rows[rows.trained_part == "differs"]
    return f"{', '.join(different.optimizer.unique())}: {_settings_text(different, table)}" if len(different) else ""


def _optimizers_by_settings(rows: DataFrame, table: DataFrame) -> dict[str, list[str]]:
    """Return the conditions under which frozen parameters change, as {conditions: optimizers}.

    An example is {`weight decay`: [`adam`, `sgd`]}. Conditions are a text as `_settings_text` returns it; optimizers with
    the same conditions share an entry. `rows`: the rows of the truth table with one method and one cause of the change.
    `table`: all rows of the truth table.
    """
    found: dict[str, list[str]] = {}
    for optimizer, part in rows.groupby("optimizer", sort=False):
        found.setdefault(_settings_text(part, table), []).append(str(optimizer))
    return found


def _settings_text(rows: DataFrame, table: DataFrame) -> str:
    """Return the conditions under which `rows` occur, such as `scheduler step, weight decay, frozen in mid-run`.

    `rows` are compared with all rows of `table` that have the same optimizers and were not skipped. A setting, such as
    weight decay, is only named if `rows` lack one of the setting's values. The text is `any` if no setting is named.
    """
    all_rows = table[table.optimizer.isin(rows.optimizer.unique()) & (table.outcome != "skipped")]
    alike = all_rows[all_rows.frozen_from.isin(rows.frozen_from.unique())]  # not every scheduler has runs that freeze twice
    schedulers = _schedulers_in(rows)
    texts = [f"scheduler {', '.join(schedulers)}"] if schedulers != _schedulers_in(alike) else []
    for column, words in SETTINGS.items():
        values, all_values = (set(part[column]) & words.keys() for part in (rows, all_rows))
        if values and values != all_values:
            texts.append(" or ".join(text for value, text in words.items() if value in values))
    return ", ".join(texts) or "any"


def _schedulers_in(rows: DataFrame) -> list[str]:
    """Return the schedulers of all runs that `rows` stand for, sorted."""
    return sorted(set("|".join(rows.schedulers).split("|")))


def _count_runs(rows: DataFrame) -> int:
    """Return the number of runs that `rows` stand for; one row can stand for several runs."""
    return int(rows.runs.sum())

"""Make the tables of the page as data (caption, columns, rows of cells), which `page.html.jinja` turns into HTML."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runner.contract import DEFECTS, STATUSES_WITH_TABLES, VERDICTS, is_hashed
from runner.display.units import in_digits
from runner.errors import listed
from runner.report.costs import COST_TEXTS, costs_by_run
from runner.report.equivalence import compare_trained_parts
from runner.report.grouping import SeedGroup, group_by_method, overrides_by_key, seed_groups, swept_keys
from runner.runs.hydra_files import read_config
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import MAX_CELL, counted, shortened

MAX_TABLE_ROWS, MAX_TENSOR_ROWS, MAX_LEAK_ROWS = 1000, 5000, 40


class Column(NamedTuple):
    """A column of a table: its heading, and whether its cells are numbers (aligned right, sorted by size)."""

    name: str
    number: bool = False


class TableCell(NamedTuple):
    """A cell of a table: its text, and its CSS class (`code`, `why`, an outcome such as `held`, or empty)."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table of the page; `key` is its name in the template, and the first cell of each row is the row's heading."""

    key: str
    caption: str
    columns: list[Column]
    rows: list[list[TableCell]] = field(default_factory=list)


def runs_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row per run: how the run was configured, and how it ended.

    Columns: the run's label; a column for each command-line override that is not the same in all runs; the outcome; the
    number of tensors with each verdict (`held`, `leaked`, ...); the first and the last loss; whether the trainable
    parameters end with the same bits as under `requires_grad`; the costs of a training step. At most MAX_TABLE_ROWS runs are
    shown.
    """
    keys, trained_parts = swept_keys(runs), compare_trained_parts({run.label: run.record for run in runs})
    verdicts = [verdict for verdict in VERDICTS if any(run.record["counts"][verdict] for run in runs)]
    costs = costs_by_run(runs)
    cost_columns = [(name, text_of) for name, text_of in COST_TEXTS.items() if any(map(text_of, costs.values()))]
    has_trained_part = any(word for word, _ in trained_parts.values())
    columns = [Column("run"), *map(Column, keys), Column("outcome"), *(Column(verdict, True) for verdict in verdicts)]
    columns += [Column("first loss", True), Column("last loss", True)]
    measured = dict.fromkeys(key for run in runs for key in run.held_out)
    columns += [Column(f"held-out {key}", True) for key in measured]
    columns += [Column("trained_part")] if has_trained_part else []
    columns += [Column(name, True) for name, _ in cost_columns]
    rows, picked = [], pick_runs(runs)
    for run in picked:
        record, overrides = run.record, overrides_by_key(run)
        row = [
            TableCell(run.label),
            *(TableCell(shortened(overrides.get(key, ""), MAX_CELL)) for key in keys),
            _outcome_cell(run.outcome),
        ]
        row += [TableCell(str(record["counts"][verdict])) for verdict in verdicts]
        row += [TableCell(_loss_text(run, loss)) for loss in (record["loss_first"], record["loss_last"])]
        row += [TableCell(in_digits(run.held_out.get(key))) for key in measured]
        row += [TableCell(": ".join(filter(None, trained_parts[run.label])), "why")] if has_trained_part else []
        rows.append(row + [TableCell(text_of(costs[run.label])) for _, text_of in cost_columns])
    caption = (
        f"{'How the runs differ' if len(runs) > 1 else 'The settings'}, the outcome, and how many tensors have each verdict"
    )
    if len(picked) < len(runs):
        caption += f"; {len(picked):,} of {len(runs):,} runs, those that did not hold before the others"
    return PageTable("runs", caption, columns, rows)


def pick_runs(runs: Sequence[Run]) -> list[Run]:
    """Return at most MAX_TABLE_ROWS runs, in the given order.

    If there are more, the first to be left out are runs whose frozen tensors all kept their bits.
    """
    if len(runs) <= MAX_TABLE_ROWS:
        return list(runs)
    picked = {run.label for run in sorted(runs, key=lambda run: run.outcome == "held")[:MAX_TABLE_ROWS]}
    return [run for run in runs if run.label in picked]


def seed_groups_table(runs: Sequence[Run]) -> PageTable | None:
    """Return a table with a row per group of runs that differ only in the seed; None if every group has only one run.

    A row has the worst outcome of the group's runs. It also has the mean and the standard deviation of the last losses of
    the runs that finished, and the number of these losses.
    """
    groups = seed_groups(runs)
    if all(len(group.runs) == 1 for group in groups):
        return None
    keys = [key for key in swept_keys(runs) if key != "seed"]
    trained_parts = compare_trained_parts({run.label: run.record for run in runs})
    columns = [*map(Column, keys or ["runs"]), Column("worst outcome"), Column("runs", True), Column("finished", True)]
    columns += [
        Column("leaked at most", True),
        Column("loss, mean", True),
        Column("spread", True),
        Column("n", True),
        Column("trained_part"),
    ]
    rows = []
    for group in groups:
        overrides = overrides_by_key(group.runs[0])
        losses = [loss for run in group.runs if run.finished and (loss := run.record["loss_last"]) is not None]
        mean, spread = statistics.fmean(losses) if losses else None, statistics.stdev(losses) if len(losses) > 1 else None
        row = [TableCell(shortened(overrides.get(key, ""), MAX_CELL)) for key in keys] or [TableCell(group.name)]
        row += [_outcome_cell(group.outcome), TableCell(str(len(group.runs)))]
        row += [TableCell(str(sum(run.finished for run in group.runs)))]
        row += [TableCell(str(max(run.record["counts"]["leaked"] for run in group.runs)))]
        row += [TableCell(in_digits(mean)), TableCell(in_digits(spread)), TableCell(str(len(losses)))]
        rows.append([*row, TableCell(_trained_part_text(group, trained_parts), "why")])
    caption = f"{counted(len(groups), 'setting')}, each over its seeds{_first_rows_text(len(rows), MAX_TABLE_ROWS)}"
    return PageTable("cells", caption, columns, rows[:MAX_TABLE_ROWS])


def tensors_table(tensors: Sequence[TensorRow]) -> PageTable:
    """Return a table with a row per parameter and buffer of a run.

    A row says whether the tensor was declared frozen, its verdict (such as `held`), the cause if it leaked or stayed idle,
    and how far it moved. At most MAX_TENSOR_ROWS are shown, those that leaked or stayed idle before the others.
    """
    shown = tensors
    if len(tensors) > MAX_TENSOR_ROWS:
        shown = sorted(tensors, key=lambda row: row.verdict not in ("leaked", "idle"))[:MAX_TENSOR_ROWS]
    columns = [Column("tensor"), Column("kind"), Column("declared"), Column("verdict"), Column("cause")]
    columns += [Column("change (L2 norm)", True), Column("relative to the start", True)]
    rows = [
        [
            TableCell(row.name),
            TableCell(row.kind),
            TableCell("frozen" if row.frozen else "live" if row.kind == "buffer" else "trainable"),
            TableCell(row.verdict, row.verdict),
            TableCell(row.cause.replace("|", " with ")),
            *(TableCell("" if change is None else f"{change:.4g}") for change in (row.change_l2, row.change_rel)),
        ]
        for row in shown
    ]
    caption = f"Each of {counted(len(tensors), 'tensor')}: how far it moved, and why"
    return PageTable("tensors", caption + _first_rows_text(len(tensors), MAX_TENSOR_ROWS), columns, rows)


def leaks_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row for each combination of a leaked tensor (frozen, but changed) and a cause of its change.

    A row has the methods and the number of runs in which the tensor leaked for this cause, and the tensor's largest relative
    change in these runs. Rows are sorted by that change, the largest first. At most MAX_LEAK_ROWS rows are shown.
    """
    leaks: dict[tuple[str, str], list[tuple[float, str]]] = {}  # (tensor, cause) -> (change, method) of each run
    for method, members in group_by_method(runs).items():
        for run in members:
            for row in run.tensors:
                if row.verdict == "leaked":
                    leaks.setdefault((row.name, row.cause or "unknown"), []).append((_change(row), method))
    columns = [
        Column("tensor"),
        Column("cause"),
        Column("methods"),
        Column("runs", True),
        Column("largest relative change", True),
    ]
    rows = [
        [
            TableCell(name),
            TableCell(cause.replace("|", " with ")),
            TableCell(listed(list(dict.fromkeys(method for _, method in found)), most=4)),
            TableCell(str(len(found))),
            TableCell(in_digits(max(found)[0])),
        ]
        for (name, cause), found in sorted(leaks.items(), key=lambda item: -max(item[1])[0])
    ]
    tensors = counted(len({name for name, _ in leaks}), "frozen tensor")
    caption = f"{tensors} leaked, the largest change first{_first_rows_text(len(rows), MAX_LEAK_ROWS)}"
    return PageTable("leaks", caption, columns, rows[:MAX_LEAK_ROWS])


def failures_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row per run that did not finish: status and reason."""
    columns = [Column("run"), Column("status"), Column("reason")]
    rows = [
        [TableCell(run.label), TableCell(run.record["status"], run.record["status"]), TableCell(run.record["reason"])]
        for run in runs
        if not run.finished
    ]
    caption = f"{counted(len(rows), 'run')} did not finish{_first_rows_text(len(rows), MAX_TABLE_ROWS)}"
    return PageTable("failures", caption, columns, rows[:MAX_TABLE_ROWS])


def commands_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row per run: the command that repeats it, and the config values in which the runs differ."""
    runs = pick_runs(runs)
    configs = {run.label: read_config(run.folder) for run in runs}
    keys = dict.fromkeys(key for config in configs.values() for key in config if is_hashed(key))
    differing = [key for key in keys if len({config.get(key) for config in configs.values() if config}) > 1]
    rows = []
    for run in runs:
        config = configs[run.label]
        values = [f"{key}={config[key]}" for key in differing if key in config]
        command = f"python -m runner {shlex.join(run.record['overrides'])}".rstrip()
        config_cells = [TableCell(", ".join(values))] if differing else []
        rows.append([TableCell(run.label), *config_cells, TableCell(command, "code")])
    columns = [Column("run"), *([Column("its config")] if differing else []), Column("command")]
    caption = "The command that repeats each run" + ("; its config, where the runs differ" if differing else "")
    return PageTable("commands", caption, columns, rows)


def machines_table(runs: Sequence[Run]) -> tuple[str, PageTable]:
    """Return what the runs ran on (versions of libraries, device, number of threads, git commit), as (text, table).

    The text lists what is the same for all runs. The table has a row for each value of everything else, with the number of
    runs that have this value.
    """
    facts: dict[str, Counter[str]] = {}
    for run in [run for run in runs if run.record["status"] in STATUSES_WITH_TABLES] or runs:
        for key, value in _machine_facts(run).items():
            facts.setdefault(key, Counter())[value] += 1
    common = [f"{key} {next(iter(count))}" for key, count in facts.items() if len(count) == 1 and next(iter(count))]
    rows = [
        [TableCell(key), TableCell(value or "not recorded"), TableCell(str(number))]
        for key, count in facts.items()
        if len(count) > 1
        for value, number in sorted(count.items())
    ]
    columns = [Column("fact"), Column("value"), Column("runs", True)]
    return ", ".join(common), PageTable("machines", "The runs differ in what they ran on", columns, rows[:MAX_TABLE_ROWS])


def _outcome_cell(outcome: str) -> TableCell:
    """Return a cell with the outcome of a run; a defect, such as `nothing trained`, has the colour of a leak."""
    return TableCell(outcome, "bad" if outcome in DEFECTS else outcome)


def _first_rows_text(rows: int, limit: int) -> str:
    """Return the end of a table's caption: `; the first LIMIT of ROWS`, or an empty text if all rows are shown.

    `rows`: the number of rows before the table is cut. `limit`: the most rows that are shown.
    """
    return f"; the first {limit:,} of {rows:,}" if rows > limit else ""


def _machine_facts(run: Run) -> dict[str, str]:
    """Return {fact: value}: the version of each library, device, number of threads and git commit of a run."""
    record = run.record
    versions, git = record["versions"], record["git"]
    commit = str(git.get("commit") or "")[:12] + (" with changes" if git.get("dirty") else "")
    facts: dict[str, Any] = {**versions, "device": record["device"], "threads": record["threads"], "commit": commit}
    return {str(key): "" if value is None else str(value) for key, value in facts.items()}


def _trained_part_text(group: SeedGroup, trained_parts: dict[str, tuple[str, str]]) -> str:
    """Return a text on whether a group's runs train the trainable parameters to the same bits as `requires_grad`.

    Runs with the same result share one entry of the text. `trained_parts`: what `compare_trained_parts` returns, {run label:
    (`identical` or `differs`, reason)}.
    """
    texts = dict.fromkeys(": ".join(filter(None, trained_parts[run.label])) for run in group.runs)
    return "; ".join(filter(None, texts))


def _loss_text(run: Run, loss: float | None) -> str:
    """Return a loss as a text with four significant digits.

    If `loss` is None, the text is `not finite` for a run that made steps, and empty for a run that made none.
    """
    if loss is not None:
        return in_digits(loss)
    return "not finite" if run.record["looks"] else ""


def _change(row: TensorRow) -> float:
    """Return a tensor's relative change, or its absolute change if it has no relative one (because it started at 0).

    Infinity if the change is unknown or NaN.
    """
    change = row.change_l2 if row.change_rel is None else row.change_rel
    return math.inf if change is None or math.isnan(change) else change

"""The tables of the page, as data: a caption, columns, and rows of cells; one template shows them all."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runner.contract import NOT_HASHED, VERDICTS, WITH_TABLES
from runner.errors import listed
from runner.report.equivalence import trained_parts
from runner.report.grouping import SeedGroup, by_method, given, seed_groups, swept
from runner.report.prices import costs, flops
from runner.runs.hydra_files import read_config
from runner.runs.read import Run
from runner.runs.tables import TensorRow
from runner.runs.text import counted, in_digits, in_gflop, in_mib, in_percent

MOST, MOST_LEAKS = 1000, 40  # rows of a table


PRICES: dict[str, Callable[[Mapping[str, Any]], str]] = {  # of a step; all figures are in comparison.csv
    "GFLOP": lambda cost: in_gflop(flops(cost)),
    "of unfrozen": lambda cost: in_percent(cost.get("flops_share")),
    "saved MiB": lambda cost: in_mib(cost.get("saved_bytes")),
    "gradients MiB": lambda cost: in_mib(cost.get("gradient_bytes")),
    "state MiB": lambda cost: in_mib(cost.get("optimizer_state_bytes")),
    "peak MiB": lambda cost: in_mib(cost.get("peak_memory_bytes")),
    "forward s": lambda cost: in_digits(cost.get("seconds_forward")),
    "backward s": lambda cost: in_digits(cost.get("seconds_backward")),
    "step s": lambda cost: in_digits(cost.get("seconds_step")),
}


class Column(NamedTuple):
    """A column's heading, and whether it holds numbers."""

    name: str
    number: bool = False


class Cell(NamedTuple):
    """A cell's text, and what it is: an outcome's word, `code`, or nothing."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table of the page; the first entry of a row is what it is about."""

    key: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)


def runs_table(runs: Sequence[Run]) -> PageTable:
    """A row a run: what tells it apart, how it ended, what moved, its losses, the trained_part, its costs."""
    keys, trained_part = swept(runs), trained_parts({run.label: run.record for run in runs})
    words = [word for word in VERDICTS if any(run.record["counts"][word] for run in runs)]
    cost = costs(runs)
    priced = [(name, what) for name, what in PRICES.items() if any(what(own) for own in cost.values())]
    compared = any(word for word, _ in trained_part.values())
    columns = [Column("run"), *map(Column, keys), Column("answer"), *(Column(word, True) for word in words)]
    columns += [Column("first loss", True), Column("last loss", True), *([Column("trained_part")] if compared else [])]
    columns += [Column(name, True) for name, _ in priced]
    rows = []
    picked = gravest(runs)
    for run in picked:
        record, own = run.record, given(run)
        row = [Cell(run.label), *(Cell(own.get(key, "")) for key in keys), Cell(run.outcome, run.outcome)]
        row += [Cell(str(record["counts"][word])) for word in words]
        row += [Cell(_loss(run, loss)) for loss in (record["loss_first"], record["loss_last"])]
        row += [Cell(": ".join(filter(None, trained_part[run.label])), "why")] if compared else []
        rows.append(row + [Cell(what(cost[run.label])) for _, what in priced])
    caption = f"{'What tells each apart' if len(runs) > 1 else 'What was asked'}, how it ended, how many tensors did what"
    if len(picked) < len(runs):
        caption += f"; {len(picked):,} of {len(runs):,}, those that did not hold before the others"
    return PageTable("runs", caption, columns, rows)


def gravest(runs: Sequence[Run]) -> list[Run]:
    """As many runs as a table can hold, those that did not hold before the others, in the order in which they were given."""
    if len(runs) <= MOST:
        return list(runs)
    picked = {run.label for run in sorted(runs, key=lambda run: run.outcome == "held")[:MOST]}
    return [run for run in runs if run.label in picked]


def seed_groups_table(runs: Sequence[Run]) -> PageTable | None:
    """A row for each cell, its runs alike but for the seed: the worst answer, the losses' mean, spread and number."""
    grouped = seed_groups(runs)
    if all(len(cell.runs) == 1 for cell in grouped):
        return None
    keys = [key for key in swept(runs) if key != "seed"]
    trained_part = trained_parts({run.label: run.record for run in runs})
    heads = [*map(Column, keys or ["runs"]), Column("worst answer"), Column("runs", True), Column("finished", True)]
    heads += [
        Column("leaked at most", True),
        Column("loss, mean", True),
        Column("spread", True),
        Column("n", True),
        Column("trained_part"),
    ]
    rows = []
    for cell in grouped:
        own = given(cell.runs[0])
        known = [loss for run in cell.runs if run.finished and (loss := run.record["loss_last"]) is not None]
        spread = statistics.stdev(known) if len(known) > 1 else None
        row = [Cell(own.get(key, "")) for key in keys] or [Cell(cell.name)]
        row += [Cell(cell.outcome, cell.outcome), Cell(str(len(cell.runs)))]
        row += [Cell(str(sum(run.finished for run in cell.runs)))]
        row += [Cell(str(max(run.record["counts"]["leaked"] for run in cell.runs)))]
        row += [Cell(in_digits(statistics.fmean(known) if known else None)), Cell(in_digits(spread)), Cell(str(len(known)))]
        rows.append([*row, Cell(_trained_part(cell, trained_part), "why")])
    told = f"; the first {MOST:,}" if len(rows) > MOST else ""
    return PageTable("cells", f"{counted(len(grouped), 'setting')}, each over its seeds{told}", heads, rows[:MOST])


def tensors_table(tensors: Sequence[TensorRow]) -> PageTable:
    """A row a tensor of one run."""
    columns = [Column("tensor"), Column("kind"), Column("declared"), Column("verdict"), Column("cause")]
    columns += [Column("change (L2 norm)", True), Column("relative to the start", True)]
    rows = [
        [
            Cell(row.name),
            Cell(row.kind),
            Cell("frozen" if row.frozen else "live" if row.kind == "buffer" else "trainable"),
            Cell(row.verdict, row.verdict),
            Cell(row.cause.replace("|", " with ")),
            Cell(in_digits(row.change_l2)),
            Cell(in_digits(row.change_rel)),
        ]
        for row in tensors
    ]
    return PageTable("tensors", f"Each of {counted(len(rows), 'tensor')}: how far it moved, and why", columns, rows)


def leaks_table(runs: Sequence[Run]) -> PageTable:
    """A row for each frozen tensor that leaked and each cause: under which methods, in how many runs, how far at most."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for method, members in by_method(runs).items():
        for run in members:
            for row in run.tensors:
                if row.verdict == "leaked":
                    found.setdefault((row.name, row.cause or "unknown"), []).append((_far(row), method))
    columns = [
        Column("tensor"),
        Column("cause"),
        Column("methods"),
        Column("runs", True),
        Column("largest relative change", True),
    ]
    rows = [
        [
            Cell(name),
            Cell(cause.replace("|", " with ")),
            Cell(listed(list(dict.fromkeys(method for _, method in leaks)), most=4)),
            Cell(str(len(leaks))),
            Cell(in_digits(max(leaks)[0])),
        ]
        for (name, cause), leaks in sorted(found.items(), key=lambda item: -max(item[1])[0])
    ]
    told = counted(len({name for name, _ in found}), "frozen tensor")
    caption = f"{told} leaked, the farthest first" + (
        f"; the first {MOST_LEAKS} of {len(rows)}" if len(rows) > MOST_LEAKS else ""
    )
    return PageTable("leaks", caption, columns, rows[:MOST_LEAKS])


def failures_table(runs: Sequence[Run]) -> PageTable:
    """A row for each run that did not finish, and why."""
    columns = [Column("run"), Column("status"), Column("reason")]
    status = [run for run in runs if not run.finished]
    rows = [
        [Cell(run.label), Cell(run.record["status"], run.record["status"]), Cell(run.record["reason"])] for run in status
    ]
    told = f"; the first {MOST:,}" if len(rows) > MOST else ""
    return PageTable("failures", f"{counted(len(rows), 'run')} did not finish{told}", columns, rows[:MOST])


def commands_table(runs: Sequence[Run]) -> PageTable:
    """A row a run: where its config differs from that of most runs, and the command that makes it again."""
    runs = gravest(runs)
    configs = {run.label: read_config(run.folder) for run in runs}
    keys = dict.fromkeys(key for config in configs.values() for key in config if key.split(".")[0] not in NOT_HASHED)
    differing = [key for key in keys if len({config.get(key) for config in configs.values() if config}) > 1]
    rows = []
    for run in runs:
        config = configs[run.label]
        differs = [f"{key}={config[key]}" for key in differing if key in config]
        command = f"python -m runner {shlex.join(run.record['overrides'])}".rstrip()
        rows.append([Cell(run.label), *([Cell(", ".join(differs))] if differing else []), Cell(command, "code")])
    columns = [Column("run"), *([Column("its config")] if differing else []), Column("command")]
    return PageTable(
        "commands",
        "The command that makes each again" + ("; its config, where not all agree" if differing else ""),
        columns,
        rows,
    )


def machines_table(runs: Sequence[Run]) -> tuple[str, PageTable]:
    """What all runs ran on, in a line; and a row for each thing and value in which they differ."""
    facts: dict[str, Counter[str]] = {}
    for run in [run for run in runs if run.record["status"] in WITH_TABLES] or runs:
        for key, value in _facts(run).items():
            facts.setdefault(key, Counter())[value] += 1
    same = [f"{key} {next(iter(count))}" for key, count in facts.items() if len(count) == 1 and next(iter(count))]
    rows = [
        [Cell(key), Cell(value or "not recorded"), Cell(str(times))]
        for key, count in facts.items()
        if len(count) > 1
        for value, times in sorted(count.items())
    ]
    columns = [Column("of the run"), Column("value"), Column("runs", True)]
    return ", ".join(same), PageTable("machines", "The runs differ in what they ran on", columns, rows)


def _facts(run: Run) -> dict[str, str]:
    record = run.record
    versions, git = record["versions"], record["git"]
    commit = str(git.get("commit") or "")[:12] + (" with changes" if git.get("dirty") else "")
    facts: dict[str, Any] = {**versions, "device": record["device"], "threads": record["threads"], "commit": commit}
    return {str(key): "" if value is None else str(value) for key, value in facts.items()}


def _trained_part(cell: SeedGroup, trained_part: dict[str, tuple[str, str]]) -> str:
    words = dict.fromkeys(": ".join(filter(None, trained_part[run.label])) for run in cell.runs)
    return "; ".join(filter(None, words))


def _loss(run: Run, loss: float | None) -> str:
    missing = "not finite" if run.record["looks"] else ""
    return missing if loss is None else in_digits(loss)


def _far(row: TensorRow) -> float:
    change = row.change_l2 if row.change_rel is None else row.change_rel
    return math.inf if change is None or math.isnan(change) else change

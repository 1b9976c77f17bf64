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
from runner.report.equivalence import rests
from runner.report.grouping import Cell, by_method, cells, given, swept
from runner.report.prices import costs, flops
from runner.report.text import counted, listed, shown
from runner.runs.hydra_files import read_config
from runner.runs.read import Run
from runner.runs.tables import Tensor

MOST, MOST_LEAKS = 1000, 40  # rows of a table


def _number(key: str, unit: float = 1.0) -> Callable[[Mapping[str, Any]], str]:
    return lambda cost: "" if cost.get(key) is None else shown(cost[key] / unit)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


PRICES: dict[str, Callable[[Mapping[str, Any]], str]] = {  # of a step; all figures are in comparison.csv
    "GFLOP": lambda cost: "" if (total := flops(cost)) is None else shown(total / 1e9),
    "of unfrozen": lambda cost: _share(cost.get("flops_share")),
    "saved MiB": _number("saved_bytes", 2**20),
    "gradients MiB": _number("gradient_bytes", 2**20),
    "state MiB": _number("optimizer_state_bytes", 2**20),
    "peak MiB": _number("peak_memory_bytes", 2**20),
    "forward s": _number("seconds_forward"),
    "backward s": _number("seconds_backward"),
    "step s": _number("seconds_step"),
}


class Column(NamedTuple):
    """A column's heading, and whether it holds numbers."""

    name: str
    number: bool = False


class Entry(NamedTuple):
    """A cell's text, and what it is: an outcome's word, `code`, or nothing."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table of the page; the first entry of a row is what it is about."""

    key: str
    caption: str
    columns: list[Column]
    rows: list[list[Entry]] = field(default_factory=list)


def runs_sheet(runs: Sequence[Run]) -> Sheet:
    """A row a run: what tells it apart, how it ended, what moved, its losses, the rest, its costs."""
    keys, rest = swept(runs), rests({run.label: run.record for run in runs})
    words = [word for word in VERDICTS if any(run.record["counts"][word] for run in runs)]
    cost = costs(runs)
    priced = [(name, what) for name, what in PRICES.items() if any(what(own) for own in cost.values())]
    compared = any(word for word, _ in rest.values())
    columns = [Column("run"), *map(Column, keys), Column("answer"), *(Column(word, True) for word in words)]
    columns += [Column("first loss", True), Column("last loss", True), *([Column("rest")] if compared else [])]
    columns += [Column(name, True) for name, _ in priced]
    rows = []
    picked = gravest(runs)
    for run in picked:
        record, own = run.record, given(run)
        row = [Entry(run.label), *(Entry(own.get(key, "")) for key in keys), Entry(run.outcome, run.outcome)]
        row += [Entry(str(record["counts"][word])) for word in words]
        row += [Entry(_loss(run, loss)) for loss in (record["loss_first"], record["loss_last"])]
        row += [Entry(": ".join(filter(None, rest[run.label])), "why")] if compared else []
        rows.append(row + [Entry(what(cost[run.label])) for _, what in priced])
    caption = f"{'What tells each apart' if len(runs) > 1 else 'What was asked'}, how it ended, how many tensors did what"
    if len(picked) < len(runs):
        caption += f"; {len(picked):,} of {len(runs):,}, those that did not hold before the others"
    return Sheet("runs", caption, columns, rows)


def gravest(runs: Sequence[Run]) -> list[Run]:
    """As many runs as a table can hold, those that did not hold before the others, in the order in which they were given."""
    if len(runs) <= MOST:
        return list(runs)
    picked = {run.label for run in sorted(runs, key=lambda run: run.outcome == "held")[:MOST]}
    return [run for run in runs if run.label in picked]


def cells_sheet(runs: Sequence[Run]) -> Sheet | None:
    """A row for each cell, its runs alike but for the seed: the worst answer, the losses' mean, spread and number."""
    grouped = cells(runs)
    if all(len(cell.runs) == 1 for cell in grouped):
        return None
    keys = [key for key in swept(runs) if key != "seed"]
    rest = rests({run.label: run.record for run in runs})
    heads = [*map(Column, keys or ["runs"]), Column("worst answer"), Column("runs", True), Column("finished", True)]
    heads += [
        Column("leaked at most", True),
        Column("loss, mean", True),
        Column("spread", True),
        Column("n", True),
        Column("rest"),
    ]
    rows = []
    for cell in grouped:
        own = given(cell.runs[0])
        known = [loss for run in cell.runs if run.finished and (loss := run.record["loss_last"]) is not None]
        spread = statistics.stdev(known) if len(known) > 1 else None
        row = [Entry(own.get(key, "")) for key in keys] or [Entry(cell.name)]
        row += [Entry(cell.outcome, cell.outcome), Entry(str(len(cell.runs)))]
        row += [Entry(str(sum(run.finished for run in cell.runs)))]
        row += [Entry(str(max(run.record["counts"]["leaked"] for run in cell.runs)))]
        row += [Entry(shown(statistics.fmean(known) if known else None)), Entry(shown(spread)), Entry(str(len(known)))]
        rows.append([*row, Entry(_rest(cell, rest), "why")])
    told = f"; the first {MOST:,}" if len(rows) > MOST else ""
    return Sheet("cells", f"{counted(len(grouped), 'setting')}, each over its seeds{told}", heads, rows[:MOST])


def tensors_sheet(tensors: Sequence[Tensor]) -> Sheet:
    """A row a tensor of one run."""
    columns = [Column("tensor"), Column("kind"), Column("declared"), Column("verdict"), Column("cause")]
    columns += [Column("change (L2 norm)", True), Column("relative to the start", True)]
    rows = [
        [
            Entry(row.name),
            Entry(row.kind),
            Entry("frozen" if row.frozen else "live" if row.kind == "buffer" else "trainable"),
            Entry(row.verdict, row.verdict),
            Entry(row.cause.replace("|", " with ")),
            Entry(shown(row.change_l2)),
            Entry(shown(row.change_rel)),
        ]
        for row in tensors
    ]
    return Sheet("tensors", f"Each of {counted(len(rows), 'tensor')}: how far it moved, and why", columns, rows)


def leaks_sheet(runs: Sequence[Run]) -> Sheet:
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
            Entry(name),
            Entry(cause.replace("|", " with ")),
            Entry(listed(list(dict.fromkeys(method for _, method in leaks)), most=4)),
            Entry(str(len(leaks))),
            Entry(shown(max(leaks)[0])),
        ]
        for (name, cause), leaks in sorted(found.items(), key=lambda item: -max(item[1])[0])
    ]
    told = counted(len({name for name, _ in found}), "frozen tensor")
    caption = f"{told} leaked, the farthest first" + (
        f"; the first {MOST_LEAKS} of {len(rows)}" if len(rows) > MOST_LEAKS else ""
    )
    return Sheet("leaks", caption, columns, rows[:MOST_LEAKS])


def failures_sheet(runs: Sequence[Run]) -> Sheet:
    """A row for each run that did not finish, and why."""
    columns = [Column("run"), Column("status"), Column("reason")]
    status = [run for run in runs if not run.finished]
    rows = [
        [Entry(run.label), Entry(run.record["status"], run.record["status"]), Entry(run.record["reason"])] for run in status
    ]
    told = f"; the first {MOST:,}" if len(rows) > MOST else ""
    return Sheet("failures", f"{counted(len(rows), 'run')} did not finish{told}", columns, rows[:MOST])


def commands_sheet(runs: Sequence[Run]) -> Sheet:
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
        rows.append([Entry(run.label), *([Entry(", ".join(differs))] if differing else []), Entry(command, "code")])
    columns = [Column("run"), *([Column("its config")] if differing else []), Column("command")]
    return Sheet(
        "commands",
        "The command that makes each again" + ("; its config, where not all agree" if differing else ""),
        columns,
        rows,
    )


def machines_sheet(runs: Sequence[Run]) -> tuple[str, Sheet]:
    """What all runs ran on, in a line; and a row for each thing and value in which they differ."""
    facts: dict[str, Counter[str]] = {}
    for run in [run for run in runs if run.record["status"] in WITH_TABLES] or runs:
        for key, value in _facts(run).items():
            facts.setdefault(key, Counter())[value] += 1
    same = [f"{key} {next(iter(count))}" for key, count in facts.items() if len(count) == 1 and next(iter(count))]
    rows = [
        [Entry(key), Entry(value or "not recorded"), Entry(str(times))]
        for key, count in facts.items()
        if len(count) > 1
        for value, times in sorted(count.items())
    ]
    columns = [Column("of the run"), Column("value"), Column("runs", True)]
    return ", ".join(same), Sheet("machines", "The runs differ in what they ran on", columns, rows)


def _facts(run: Run) -> dict[str, str]:
    record = run.record
    versions, git = record["versions"], record["git"]
    commit = str(git.get("commit") or "")[:12] + (" with changes" if git.get("dirty") else "")
    facts: dict[str, Any] = {**versions, "device": record["device"], "threads": record["threads"], "commit": commit}
    return {str(key): "" if value is None else str(value) for key, value in facts.items()}


def _rest(cell: Cell, rest: dict[str, tuple[str, str]]) -> str:
    words = dict.fromkeys(": ".join(filter(None, rest[run.label])) for run in cell.runs)
    return "; ".join(filter(None, words))


def _loss(run: Run, loss: float | None) -> str:
    missing = "not finite" if run.record["looks"] else ""
    return missing if loss is None else shown(loss)


def _far(row: Tensor) -> float:
    change = row.change_l2 if row.change_rel is None else row.change_rel
    return math.inf if change is None or math.isnan(change) else change

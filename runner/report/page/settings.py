"""What the runs were told and what they ran on: what all share, what differs, and the commands that repeat them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from runner.contract import STATUSES_WITH_TABLES, is_hashed
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, table_section
from runner.report.page.runs import pick_runs
from runner.runs.read import Run

MAX_TABLE_ROWS = 1000


def commands_section(run_set: RunSet) -> Section | None:
    """Return the section with the command that repeats each run."""
    return table_section("Configs and commands" if not run_set.single else "The command", commands_table(run_set.runs))


def machines_section(run_set: RunSet) -> Section:
    """Return the section about what the runs ran on."""
    text, table = machines_table(run_set.runs)
    heading = "What it ran on" if run_set.single else "What they ran on"
    return Section("ran", heading, "text_and_table", {"text": text, "table": table})


def commands_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row per run: the command that repeats it, and the config values in which the runs differ."""
    runs = pick_runs(runs)
    configs = {run.label: run.config for run in runs}
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


def _machine_facts(run: Run) -> dict[str, str]:
    """Return {fact: value}: the version of each library, device, number of threads and git commit of a run."""
    record = run.record
    versions, git = record["versions"], record["git"]
    commit = str(git.get("commit") or "")[:12] + (" with changes" if git.get("dirty") else "")
    facts: dict[str, Any] = {**versions, "device": record["device"], "threads": record["threads"], "commit": commit}
    return {str(key): "" if value is None else str(value) for key, value in facts.items()}

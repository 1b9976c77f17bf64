"""What the runs were told and what they ran on: what all share, what differs, and the commands that repeat them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from runner.contract import STATUSES_WITH_TABLES, is_hashed
from runner.report.compare.origin import facts_of
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, first_rows_text, table_section, value_cell
from runner.report.page.runs import pick_runs
from runner.runs.read import Run
from runner.runs.text import MAX_CELL, counted, shortened

MAX_TABLE_ROWS = 1000


def shared_section(run_set: RunSet) -> Section | None:
    """Return the section with the part of the config that all runs share, what was given first; None if none is known."""
    given = shared(_given(run) for run in run_set.runs)
    config = shared(_hashed(run.config) for run in run_set.runs if run.config)
    if not given and not config:
        return None
    of_all = "" if run_set.single else " that all runs share"
    tables = {
        "given": _key_table(
            "given", f"What was given on the command line{'' if run_set.single else ', for all runs'}", given
        ),
        "config": _key_table("composed", f"The composed config{', as far as all runs share it' if of_all else ''}", config),
    }
    summary = f"{counted(len(config), 'value')}{of_all}, with the defaults"
    return Section("config", f"Config{of_all}", "config", {**tables, "summary": summary})


def commands_section(run_set: RunSet) -> Section | None:
    """Return the section with the command that repeats each run."""
    return table_section("The command" if run_set.single else "Configs and commands", commands_table(run_set))


def machines_section(run_set: RunSet) -> Section:
    """Return the section about what the runs ran on."""
    text, table = machines_table(run_set.runs)
    heading = "What it ran on" if run_set.single else "What they ran on"
    return Section("ran", heading, "text_and_table", {"text": text, "table": table})


def commands_table(run_set: RunSet) -> PageTable:
    """Return a table with a row per run: the command that repeats it, and the config values in which the runs differ.

    The command has the number of threads that the run used, without which the last bits may differ.
    """
    runs = pick_runs(run_set.runs)
    keys = dict.fromkeys(key for run in runs for key in run.config if is_hashed(key))
    differing = [key for key in keys if len({run.config.get(key) for run in runs if run.config}) > 1]
    rows = []
    for run in runs:
        values = [f"{key}={shortened(run.config[key], MAX_CELL)}" for key in differing if run.config.get(key)]
        values += [f"{key} empty" for key in differing if run.config.get(key) == ""]
        config_cells = [TableCell(", ".join(values))] if differing else []
        rows.append([TableCell(run.label, link=run_set.link(run)), *config_cells, TableCell(command_of(run), "code")])
    columns = [Column("run"), *([Column("its config")] if differing else []), Column("command")]
    caption = "The command that repeats each run" + ("; its config, where the runs differ" if differing else "")
    return PageTable("commands", caption, columns, rows)


def command_of(run: Run) -> str:
    """Return the shell command that repeats a run, in one line, with the number of threads that it used where known."""
    overrides, threads = run.record["overrides"], run.record["threads"]
    if threads is not None:
        others = [text for text in overrides if text.partition("=")[0].lstrip("+") != "threads"]
        overrides = [*others, f"threads={threads:g}"]
    return f"python -m runner {shlex.join(overrides)}".rstrip()


def machines_table(runs: Sequence[Run]) -> tuple[str, PageTable]:
    """Return what the runs ran on (versions of libraries, device, number of threads, git commit), as (text, table).

    The text lists what is the same for all runs. The table has a row for each value of everything else, with the number of
    runs that have this value.
    """
    trained = [run for run in runs if run.record["status"] in STATUSES_WITH_TABLES] or runs
    found = [facts_of(run) | {"commit": _commit_of(run)} for run in trained]
    counts = {
        key: Counter(facts.get(key, "") for facts in found) for key in dict.fromkeys(key for each in found for key in each)
    }
    common = [f"{key} {next(iter(count))}" for key, count in counts.items() if len(count) == 1 and next(iter(count))]
    rows = [
        [TableCell(key), TableCell(value or "not recorded"), TableCell(f"{number:,}")]
        for key, count in counts.items()
        if len(count) > 1
        for value, number in sorted(count.items())
    ]
    columns = [Column("fact"), Column("value"), Column("runs", True)]
    return ", ".join(common), PageTable("machines", "The runs differ in what they ran on", columns, rows[:MAX_TABLE_ROWS])


def shared(mappings: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the items that all mappings have; empty if there is no mapping."""
    first, *others = [*mappings] or [{}]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _hashed(config: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a config that a run's results depend on, without what only says where and how it is carried out."""
    return {key: value for key, value in config.items() if is_hashed(key)}


def _given(run: Run) -> dict[str, str]:
    """Return a run's overrides as {key: value}."""
    return {key: value for key, _, value in (text.partition("=") for text in run.record["overrides"])}


def _key_table(name: str, caption: str, values: Mapping[str, str]) -> PageTable:
    """Return a table with a row for each key and its value."""
    rows = [[TableCell(key), value_cell(key, value, "code")] for key, value in values.items()]
    cut = first_rows_text(len(rows), MAX_TABLE_ROWS)
    return PageTable(f"config-{name}", caption + cut, [Column("key"), Column("value")], rows[:MAX_TABLE_ROWS])


def _commit_of(run: Run) -> str:
    """Return the git commit that a run was started from, shortened, and whether there were changes; "" if not known."""
    git = run.record["git"]
    return str(git.get("commit") or "")[:12] + (" with changes" if git.get("dirty") else "")

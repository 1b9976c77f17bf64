"""The config that all runs share, what differs, the commands that repeat the runs, and what they ran on."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from runner.report.compare.run_set import RunSet
from runner.report.page.config import command_of, commands_section, commands_table, machines_table, shared, shared_section
from runner.runs.read import read_run, run_folders
from tests.run_folders import VERSIONS, write_run

SWEEP = Path("sweep")


def run_set() -> RunSet:
    """The runs in the sweep's folder."""
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)


def texts(table) -> list[list[str]]:
    """The texts of a table's cells."""
    return [[cell.text for cell in row] for row in table.rows]


def test_what_all_runs_were_given_stands_first_and_what_they_share_with_the_defaults_is_folded():
    for seed in (0, 1):
        folder = write_run(SWEEP, "zero_lr", "model=mlp", f"seed={seed}")
        (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\ntimeout: 9\nbatches: 3\nmodel:\n  width: 4\n")
    section = shared_section(run_set())
    assert section.heading == "Config that all runs share"
    assert texts(section.data["given"]) == [["method", "zero_lr"], ["model", "mlp"]]
    assert texts(section.data["config"]) == [["batches", "3"], ["model.width", "4"]]
    assert section.data["summary"] == "2 values that all runs share, with the defaults"


def test_one_run_has_its_config():
    write_run(SWEEP, "zero_lr", "seed=3")
    section = shared_section(run_set())
    assert section.heading == "Config"
    assert ["seed", "3"] in texts(section.data["given"])


def test_a_run_whose_config_cannot_be_read_hides_nothing_of_the_others():
    write_run(SWEEP, "zero_lr", "seed=0")
    (write_run(SWEEP, "zero_lr", "seed=1") / ".hydra" / "config.yaml").write_text("{[")
    assert ["seed", "0"] in texts(shared_section(run_set()).data["config"])


def test_shared_items_are_those_that_all_have():
    assert shared([{"a": "1", "b": "2"}, {"b": "2", "a": "3"}, {"b": "2", "c": "4"}]) == {"b": "2"}
    assert shared([{"a": "1"}]) == {"a": "1"}
    assert shared([]) == {}


@pytest.mark.parametrize(
    ("overrides", "threads", "expected"),
    [
        (["seed=1"], 4, ["method=zero_lr", "seed=1", "threads=4"]),
        (["threads=auto", "seed=1"], 2, ["method=zero_lr", "seed=1", "threads=2"]),
        (["+threads=8"], 8, ["method=zero_lr", "threads=8"]),
        (["threads=8"], None, ["method=zero_lr", "threads=8"]),
        (['tag=it\'s a "ü" $HOME `x`'], 1, ["method=zero_lr", 'tag=it\'s a "ü" $HOME `x`', "threads=1"]),
    ],
)
def test_the_command_that_repeats_a_run_has_the_threads_that_it_used_and_is_quoted(overrides, threads, expected):
    run = read_run(write_run(SWEEP, "zero_lr", *overrides, threads=threads))
    command = command_of(run)
    assert shlex.split(command) == ["python", "-m", "runner", *expected]
    assert "\n" not in command


def test_each_run_links_to_its_folder_and_has_its_command_selected_by_a_click():
    folder = write_run(SWEEP, "zero_lr", "seed=0")
    write_run(SWEEP, "zero_lr", "seed=1")
    table = commands_table(run_set())
    assert table.rows[0][0].link == f"{folder.name}/"
    assert [cell.text for cell in (row[1] for row in table.rows)] == ["seed=0", "seed=1"]
    assert {row[-1].kind for row in table.rows} == {"code"}
    assert commands_section(run_set()).heading == "Configs and commands"


def test_a_value_that_is_empty_is_so_in_words():
    for seed in (0, 1):
        folder = write_run(SWEEP, "zero_lr", "~scheduler", "tag=", f"seed={seed}")
        (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\ntag: {seed * 'x'}\n")
    assert [row[1].text for row in commands_table(run_set()).rows] == ["seed=0, tag empty", "seed=1, tag=x"]
    given = shared_section(run_set()).data["given"]
    assert texts(given)[1:] == [["~scheduler", "removed"], ["tag", "empty"]]
    assert {row[1].kind for row in given.rows[1:]} == {"quiet"}


def test_what_the_runs_ran_on_is_a_text_and_a_table_of_what_differs():
    write_run(SWEEP, "zero_lr", "seed=0")
    write_run(SWEEP, "zero_lr", "seed=1", versions=VERSIONS | {"torch": "2.15.0"}, git={"commit": "a" * 40, "dirty": True})
    text, table = machines_table(run_set().runs)
    assert text == "python 3.11.7, freeze-runner 0.1.0, device cpu, threads 1"
    assert texts(table) == [
        ["torch", "2.14.1", "1"],
        ["torch", "2.15.0", "1"],
        ["commit", "000000000000", "1"],
        ["commit", "aaaaaaaaaaaa with changes", "1"],
    ]


@pytest.mark.long
def test_the_command_of_a_real_run_repeats_its_bytes(cli):
    assert cli("model=mlp", "freeze=head", "batches=2", "threads=1", "hydra.run.dir=one")[0] == 0
    command = command_of(read_run(Path("one")))
    assert cli(*shlex.split(command)[3:], "hydra.run.dir=two")[0] == 0
    assert Path("one/changes.csv").read_bytes() == Path("two/changes.csv").read_bytes()

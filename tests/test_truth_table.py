"""The committed truth table: its shape, its counts, and a seeded sample of it run again."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest

from runner.methods.base import TRAPS
from runner.report.truth import COLUMNS, page, read_truth_table
from runner.truth_table import VARIANTS, Cell, Outcome, became, grid, main, names, rows  # noqa: F401
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
DOCS = ROOT / "docs"
TABLE = read_truth_table(DOCS)
CELLS = list(grid())
AGAIN = random.Random(0).sample(CELLS, 60)


def row_of(cell: Cell) -> dict:
    """The row of the committed table that says what became of a cell."""
    decay = "" if cell.weight_decay is None else str(cell.weight_decay)
    found = TABLE[
        (TABLE.method == cell.method)
        & (TABLE.optimizer == cell.optimizer)
        & (TABLE.weight_decay == decay)
        & (TABLE.frozen_from == str(cell.frozen_from))
        & (TABLE.gradients == cell.gradients)
        & TABLE.schedulers.map(lambda told: cell.scheduler in told.split("|"))
    ]
    assert len(found) == 1
    return found.iloc[0].to_dict()


def test_the_grid_is_every_method_optimizer_scheduler_and_setting():
    assert {cell.method for cell in CELLS} == {*names("method"), *VARIANTS}
    assert {cell.optimizer for cell in CELLS} == set(names("optimizer"))
    assert {cell.scheduler for cell in CELLS} == set(names("scheduler"))
    assert len(CELLS) == len(set(CELLS)) == 21384


def test_the_table_has_every_cell_once():
    assert list(TABLE.columns) == list(COLUMNS)
    assert TABLE.runs.sum() == len(CELLS)
    assert (TABLE.schedulers.str.count(r"\|") + 1 == TABLE.runs).all()
    for cell in AGAIN:
        row_of(cell)


@pytest.mark.parametrize("cell", AGAIN, ids=lambda cell: "-".join(map(str, vars(cell).values())))
def test_a_sample_of_the_table_comes_out_the_same_again(cell):
    end, row = became(cell), row_of(cell)
    assert (end.outcome, end.causes, end.foreseen, end.reason) == tuple(
        row[key] for key in ("outcome", "causes", "foreseen", "reason")
    )


def test_a_method_leaks_in_the_table_only_where_it_confesses_a_trap():
    leaking = set(TABLE[TABLE.outcome == "leaked"].method)
    from tests.test_conformance import build_method

    confessed = {name for name in names("method") if build_method(name).leaks_under}
    assert leaking - VARIANTS.keys() == confessed
    assert TRAPS


def test_the_page_is_what_the_table_says_and_names_the_version_of_torch():
    text = (DOCS / "truth_table.md").read_text()
    (version,) = re.findall(r"runs with torch (\S+):", text)
    assert text == page(TABLE, version)


def test_the_command_says_what_it_takes():
    said = subprocess.run(
        [sys.executable, "-m", "runner.truth_table", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "-o FOLDER" in said.stdout

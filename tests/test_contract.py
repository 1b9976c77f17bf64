"""The contract stands in one file: what is written, and what is read, has just its keys and words."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

from runner import contract
from runner.contract import CHANGE_COLUMNS, CHANGES, RECORD, VERDICTS, Record
from tests.conftest import ROOT


def test_the_contract_imports_nothing_but_typing():
    tree = ast.parse(Path(contract.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "typing"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


def test_a_run_writes_just_the_keys_of_a_record_and_the_columns_of_a_row_in_order(door, tmp_path):
    assert door("model=mlp", "batches=1", "hydra.run.dir=run")[0] == 0
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert set(record) == set(Record.__annotations__)
    with (tmp_path / "run" / CHANGES).open() as file:
        assert tuple(next(csv.reader(file))) == CHANGE_COLUMNS
    assert tuple(record["counts"]) == VERDICTS


def test_no_other_file_spells_the_name_of_a_file_of_the_contract():
    names = {value for name, value in vars(contract).items() if name.isupper() and isinstance(value, str)}
    assert {"changes.csv", "run.json", "report.html", "multirun.yaml"} <= names
    for path in [*(ROOT / "runner").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        if path != Path(contract.__file__):
            texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not names & texts, f"{path}: {names & texts}"

"""`runner/contract.py`: a run writes exactly its keys and columns, and no other module repeats its file names."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

from runner import contract
from runner.contract import CHANGE_COLUMNS, CHANGES, RECORD, VERDICTS, Record
from tests.conftest import ROOT


def test_the_contract_imports_only_typing():
    tree = ast.parse(Path(contract.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "typing"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


def test_a_run_writes_exactly_the_keys_and_columns_of_the_contract_in_its_order(cli, tmp_path):
    assert cli("model=mlp", "batches=1", "hydra.run.dir=run")[0] == 0
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert set(record) == set(Record.__annotations__)
    with (tmp_path / "run" / CHANGES).open() as file:
        assert tuple(next(csv.reader(file))) == CHANGE_COLUMNS
    assert tuple(record["counts"]) == VERDICTS


def test_no_other_module_contains_a_file_name_of_the_contract_as_a_text():
    names = {value for name, value in vars(contract).items() if name.isupper() and isinstance(value, str)}
    assert {"changes.csv", "run.json", "report.html", "multirun.yaml"} <= names
    for path in [*(ROOT / "runner").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        if path != Path(contract.__file__):
            texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not names & texts, f"{path}: {names & texts}"

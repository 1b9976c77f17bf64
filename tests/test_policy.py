"""The house rules: import directions, sizes, what stands in the README, and nothing that names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner.build import locate
from tests.conftest import ROOT

MODULES = sorted(chain((ROOT / "runner").rglob("*.py"), (ROOT / "hydra_plugins").glob("*.py")))
DOORS = {"__main__", "before", "grid", "job", "launch", "refusal", "sweep", "truth_table", "worker"}  # they alone know Hydra
AFTER_THE_LINE = {
    "job",
    "launch",
    "plan",
    "sweep",
    "truth_table",
    "worker",
    "__main__",
}  # they alone import what comes after the straight line
WITHOUT_TORCH = DOORS - {"truth_table"} | {
    "__init__",
    "claim",
    "config",
    "errors",
    "identity",
    "folder",
    "limits",
    "patterns",
    "progress",
    "provenance",
    "record",
    "summary",
    "verdict",
    "report",
}
FOLDERS = ("conf", "runner", "hydra_plugins", "tests", "benchmarks", "docs", ".ci")
TEXTS = [
    path
    for path in chain(ROOT.glob("*.*"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts)
]


def home(path: Path) -> str:
    """What a module counts as: its own name, or the package below runner that it belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "runner" else parts[0]


def imports(path: Path, everywhere: bool) -> set[str]:
    """The modules that a file imports, at its top (but for type checking) or everywhere."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def named(paths):
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


@pytest.mark.parametrize("path", **named(MODULES))
def test_only_the_doors_know_hydra(path):
    if home(path) not in DOORS | {"hydra_plugins"}:
        assert "hydra" not in roots(imports(path, everywhere=True))


@pytest.mark.parametrize("path", **named(MODULES))
def test_imports_point_one_way(path):
    own = {name.split(".")[1] for name in imports(path, everywhere=False) if name.startswith("runner.")}
    later = {"experiment", *AFTER_THE_LINE}
    if home(path) not in later:
        assert not own & later, "a leaf imports what comes after it"
    if home(path) != "__main__":
        assert "__main__" not in own


@pytest.mark.parametrize("path", **named(MODULES))
def test_pandas_matplotlib_and_jinja2_live_in_the_report_and_inside_frame(path):
    heavy = {"pandas", "matplotlib", "jinja2"}
    if home(path) != "report":
        everywhere = roots(imports(path, everywhere=True)) & heavy
        assert everywhere <= ({"pandas"} if home(path) == "findings" else set())
        assert not roots(imports(path, everywhere=False)) & heavy


@pytest.mark.parametrize("path", **named(MODULES))
def test_what_must_start_fast_leaves_torch_unimported(path):
    if home(path) in WITHOUT_TORCH:
        assert "torch" not in roots(imports(path, everywhere=False))


def test_the_sweeper_plugin_imports_hydra_alone_at_its_top():
    (plugin,) = (ROOT / "hydra_plugins").glob("*.py")
    assert roots(imports(plugin, everywhere=False)) == {"hydra", "dataclasses", "typing"}


@pytest.mark.parametrize("module", ["runner", "runner.__main__", "runner.report", "runner.report.table", "runner.sweep"])
def test_importing_a_door_leaves_torch_unimported(module):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", **named(MODULES))
def test_modules_and_functions_fit_on_a_screen(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 45, node.name


@pytest.mark.parametrize("path", **named(MODULES))
def test_every_module_class_and_public_function_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            small = isinstance(node, ast.ClassDef) and len(node.body) <= 25
            assert ast.get_docstring(node) or small, node.name


def test_there_is_no_utils_no_registry_and_no_audit_file():
    assert not {path.stem for path in MODULES} & {"utils", "helpers", "common", "registry", "manager", "audit"}


@pytest.mark.parametrize("path", **named(sorted((ROOT / "conf").rglob("*.yaml"))))
def test_every_target_of_a_config_exists(path):
    pending = [OmegaConf.to_container(OmegaConf.load(path))]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if node.get("_target_", "???") != "???":
                locate(node["_target_"], str(path))
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def test_no_file_names_a_machines_path_or_the_address_of_a_package_index():
    forbidden = re.compile(
        "|".join(
            [
                "/ro" + "ot/",
                "/ho" + "me/",
                "/work" + "/",
                "/tm" + "p/",
                r"(pypi|pytorch)\.org/(simple|whl)",
                "--index" + "-url",
            ]
        )
    )
    for path in TEXTS:
        found = forbidden.search(path.read_text(errors="replace"))
        assert not found, f"{path}: {found and found[0]}"

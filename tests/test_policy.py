"""The house rules: one table of layers, sizes, private names of libraries, and nothing that names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import runner
from runner.config.build import locate
from tests.conftest import ROOT

DOORS = {"__main__", "hydra_callback", "truth_table", "hydra_plugins"}
# A room may import the rooms of the rows before its own; of its own row, what SIDEWAYS allows.
LAYERS: tuple[set[str], ...] = (
    {"errors", "contract", "tensors", "seeding", "tracing"},
    {"freezing"},
    {"proof", "training", "cost", "methods", "config"},
    {"assemble"},
    {"foresight"},
    {"experiment"},
    {"runs"},
    {"report"},
    {"sweep"},
    DOORS,
)
SIDEWAYS = {
    ("tensors", "errors"),
    ("seeding", "errors"),
    ("cost", "training.loop"),
    ("methods", "training.epochs"),
}
# Where alone a library may be imported: a room, or a module in one.
ONLY_IN = {
    "hydra": {"config.hydra_errors", "runs.job", "sweep", *DOORS},
    "omegaconf": {"config", "runs.job", "sweep", *DOORS},
    "pandas": {"report", "proof.audit_report"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
}
AT_THE_TOP = {"pandas": {"report"}}  # elsewhere inside a function
WITHOUT_TORCH = {"__init__", "contract", "errors", "config", "runs", "report", "sweep", *DOORS}  # at the top of a file
# Each private name of torch, Hydra or OmegaConf that is used, for there is no public one: a new one is a decision.
PRIVATE_NAMES = {
    "hydra_plugins/freeze_sweeper.py": {"_parse_config", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
    "runner/config/check.py": {"_get_node"},
    "runner/cost/flops.py": {
        "_indices",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_values",
        "torch._subclasses.fake_tensor.FakeTensorMode",
        "torch.utils._python_dispatch.TorchDispatchMode",
    },
    "runner/foresight/rehearsal.py": {"_backward_hooks", "_buffers", "_parameters", "_post_accumulate_grad_hooks"},
    "runner/freezing/selection.py": {"_modules", "_orig_mod", "_parameters"},
    "runner/methods/prefix/bypass.py": {"_version"},
    "runner/methods/to_buffer.py": {"_buffers", "_parameters"},
    "runner/proof/audit.py": {"_optimizer_step_post_hooks"},
    "runner/proof/replay.py": {"_hooks"},
    "runner/proof/witness.py": {
        "_buffers",
        "_optimizer_step_post_hooks",
        "_optimizer_step_pre_hooks",
        "_orig_mod",
        "_parameters",
    },
    "runner/sweep/launch.py": {"_return_value"},
    "runner/tensors.py": {"_buffers", "_compiled_call_impl", "_orig_mod", "_parameters", "torch.utils._pytree.tree_map"},
}
FOLDERS = ("conf", "runner", "hydra_plugins", "tests", "benchmarks", "docs", ".ci")
TEXTS = [
    path
    for path in chain(ROOT.glob("*.*"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts)
]
MODULES = sorted(chain((ROOT / "runner").rglob("*.py"), (ROOT / "hydra_plugins").glob("*.py")))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}


def room(path: Path) -> str:
    """The room that a file belongs to: a package or module of `runner`, or the plug-in."""
    return place(path).split(".")[0]


def place(path: Path) -> str:
    """The room, and the module in it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "runner" else parts[:1])


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """The modules that a file imports, and the names that it takes from them; everywhere, or at its top."""
    for node in ast.walk(TREES[path]) if everywhere else TREES[path].body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: Path, everywhere: bool = True) -> set[str]:
    return {name.split(".")[0] for name in imports(path, everywhere)}


def test_every_room_is_in_the_table_of_layers_once():
    rooms = Counter(chain(*LAYERS))
    assert set(rooms) == {room(path) for path in MODULES} - {"__init__"}
    assert set(rooms.values()) == {1}


def test_imports_point_one_way():
    row_of = {name: row for row, rooms in enumerate(LAYERS) for name in rooms}
    wrong = []
    for path in MODULES:
        own = room(path)
        for name in imports(path) if own != "__init__" else ():
            parts = name.split(".")
            if parts[0] != "runner" or len(parts) == 1 or parts[1] in (own, "__version__"):
                continue
            sideways = {(own, ".".join(parts[1:count])) for count in (2, 3)}
            if row_of[parts[1]] >= row_of[own] and not sideways & SIDEWAYS:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    names = {place(path): path for path in MODULES}
    graph = {}
    for here, path in names.items():
        found = {name.removeprefix("runner.") for name in imports(path) if name.startswith("runner.")}
        graph[here] = {there for there in names if there in found or there in {name.rpartition(".")[0] for name in found}}
    TopologicalSorter({here: there - {"__init__"} for here, there in graph.items() if here != "__init__"}).prepare()


def test_a_library_is_imported_only_where_the_table_allows_it():
    wrong = []
    for path in MODULES:
        here = {room(path), place(path)}
        for library in roots(path) & ONLY_IN.keys():
            if not here & ONLY_IN[library]:
                wrong.append(f"{path.relative_to(ROOT)} imports {library}")
        for library in roots(path, everywhere=False) & AT_THE_TOP.keys():
            if not here & AT_THE_TOP[library]:
                wrong.append(f"{path.relative_to(ROOT)} imports {library} at its top")
        if room(path) in WITHOUT_TORCH and "torch" in roots(path, everywhere=False):
            wrong.append(f"{path.relative_to(ROOT)} imports torch at its top")
    assert not wrong


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_")


def private_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Names with an underscore: imported from a library, taken from an object, or spelled in a text to take them by."""
    within_f_strings = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("torch", "hydra", "omegaconf"):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("os", "sys")):
                yield node.attr
        elif isinstance(node, ast.Constant) and id(node) not in within_f_strings:
            yield from re.findall(r"^_[a-z]\w*[a-z0-9]$", str(node.value))


def test_each_private_name_of_torch_hydra_and_omegaconf_is_listed():
    own = set()
    for node in chain(*map(ast.walk, TREES.values())):
        if isinstance(node, ast.ClassDef):
            own |= {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
    found = {str(path.relative_to(ROOT)): set(private_names(tree, own)) for path, tree in TREES.items()}
    assert {path: names for path, names in found.items() if names} == PRIVATE_NAMES


def test_the_sweeper_plugin_imports_hydra_alone_at_its_top():
    (plugin,) = (ROOT / "hydra_plugins").glob("*.py")
    assert roots(plugin, everywhere=False) == {"hydra", "dataclasses", "typing"}


@pytest.mark.parametrize(
    "module",
    ["runner", "runner.__main__", "runner.report", "runner.report.comparison", "runner.sweep.drive", "runner.truth_table"],
)
def test_importing_a_door_leaves_torch_unimported(module):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modules_and_functions_fit_on_a_screen():
    wrong = []
    for path, tree in TREES.items():
        if len(path.read_text().splitlines()) > 300:
            wrong.append(f"{path.relative_to(ROOT)} has more than 300 lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 45:
                wrong.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not wrong


def test_packages_are_small():
    count = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert count.pop(ROOT / "runner") + 1 <= 14  # __init__ is one of them
    assert max(count.values()) <= 12, count


def test_no_module_at_the_top_has_the_name_of_a_public_word():
    assert not {path.stem for path in MODULES if path.parent == ROOT / "runner"} & set(runner.__all__)


def test_every_module_class_and_public_function_has_a_docstring():
    wrong = []
    for path, tree in TREES.items():
        if not ast.get_docstring(tree):
            wrong.append(str(path))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                small = isinstance(node, ast.ClassDef) and len(node.body) <= 25
                if not (ast.get_docstring(node) or small):
                    wrong.append(f"{path}: {node.name}")
    assert not wrong


def test_there_is_no_utils_and_no_registry():
    assert not {path.stem for path in MODULES} & {"utils", "helpers", "common", "misc", "registry", "manager"}


def test_every_target_of_a_config_exists():
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
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

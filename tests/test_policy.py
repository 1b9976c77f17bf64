"""The house rules: one table of layers, sizes, private names of libraries, and nothing that names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import find_spec
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
    ("tensors", "contract"),
    ("seeding", "errors"),
    ("cost", "training.loop"),
    ("methods", "training.epochs"),
}
# Where alone a library may be imported: a room, or a module in one.
ONLY_IN = {
    "hydra": {"config.compose", "config.hydra_errors", "runs.job", "sweep", *DOORS},
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
    "runner/foresight/effects.py": {"_backward_hooks", "_post_accumulate_grad_hooks"},
    "runner/foresight/rehearsal.py": {"_buffers", "_parameters"},
    "runner/freezing/selection.py": {"_modules", "_orig_mod", "_parameters"},
    "runner/methods/prefix/bypass.py": {"_version"},
    "runner/methods/to_buffer.py": {"_buffers", "_parameters"},
    "runner/proof/audit.py": {"_optimizer_step_post_hooks"},
    "runner/proof/replay.py": {"_hooks"},
    "runner/proof/leak_tracer.py": {
        "_buffers",
        "_optimizer_step_post_hooks",
        "_optimizer_step_pre_hooks",
        "_orig_mod",
        "_parameters",
    },
    "runner/runs/job.py": {"torch._dynamo"},
    "runner/sweep/launch.py": {"_return_value"},
    "runner/tensors.py": {"_buffers", "_compiled_call_impl", "_orig_mod", "_parameters", "torch.utils._pytree.tree_map"},
}
FOLDERS = ("conf", "runner", "hydra_plugins", "tests", "benchmarks", "docs", ".ci")
TEXTS = [
    path
    for path in chain(ROOT.glob("*.*"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    if path.is_file() and not {"__pycache__", ".hypothesis", ".git"} & set(path.parts)
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
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            yield from (str(given.value) for given in node.args if isinstance(given, ast.Constant))


def of_ours(path: Path) -> Iterator[tuple[str, str]]:
    """The rooms and the places in them that a file imports, its own left out."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "runner" and len(parts) > 1 and parts[1] != "__version__":
            parts = parts[1:]
        elif parts[0] != "hydra_plugins":
            continue
        if parts[0] != room(path):
            yield parts[0], ".".join(parts[:2])


def roots(path: Path, everywhere: bool = True) -> set[str]:
    return {name.split(".")[0] for name in imports(path, everywhere)}


def test_every_room_is_in_the_table_of_layers_once():
    rooms = Counter(chain(*LAYERS))
    assert set(rooms) == {room(path) for path in MODULES} - {"__init__"}
    assert set(rooms.values()) == {1}


def test_imports_point_one_way():
    row_of = {name: row for row, rooms in enumerate(LAYERS) for name in rooms}
    wrong = []
    for path in (path for path in MODULES if room(path) != "__init__"):
        for other, there in of_ours(path):
            allowed = {(room(path), other), (room(path), there)} & SIDEWAYS
            if row_of[other] >= row_of[room(path)] and not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {there}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    names = {place(path): path for path in MODULES}
    graph = {}
    for here, path in names.items():
        ours = ("runner.", "hydra_plugins.")
        found = {name.removeprefix("runner.") for name in imports(path) if name.startswith(ours)}
        found |= {"hydra_plugins" for name in found if name.startswith("hydra_plugins.")}
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


LIBRARIES = ("torch", "hydra", "omegaconf")
DIRECTIVES = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_", "_fields", "_root_"}  # public all the same


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_" and name not in DIRECTIVES


def private_names(path: Path) -> Iterator[str]:
    """Names with an underscore: imported from a library, taken from an object, or spelled in a text to take them by."""
    tree, own = TREES[path], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own |= {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
    within_f_strings = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for name in imports(path):
        if name.split(".")[0] in LIBRARIES and any(map(is_private, name.split("."))):
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if ast.unparse(node.value) not in ("os", "sys"):
                yield node.attr
        elif isinstance(node, ast.Constant) and id(node) not in within_f_strings:
            yield from filter(is_private, re.findall(r"^_[A-Za-z]\w*$", str(node.value)))


def test_each_private_name_of_torch_hydra_and_omegaconf_is_listed():
    found = {str(path.relative_to(ROOT)): set(private_names(path)) for path in MODULES}
    found = {path: names for path, names in found.items() if names}
    assert found == PRIVATE_NAMES


def test_every_name_of_ours_that_stands_in_a_text_exists():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and re.fullmatch(r"runner(\.\w+)+", str(node.value)):
                name = str(node.value)
                if name.removeprefix("runner.") not in ("steps", "epochs", "config_hash", "run_name", "log"):
                    assert find_spec(name) if is_module(name) else locate(name, str(path)), name


def is_module(name: str) -> bool:
    file = ROOT.joinpath(*name.split("."))
    return file.is_dir() or file.with_suffix(".py").is_file()


def test_a_call_that_passes_more_than_four_arguments_names_them():
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and len(node.args) > 4
                and not ast.unparse(node.func).endswith(("add_row", "Table"))
            ):
                wrong.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_the_sweeper_plugin_imports_hydra_alone_at_its_top():
    (plugin,) = (ROOT / "hydra_plugins").glob("*.py")
    assert roots(plugin, everywhere=False) == {"hydra", "dataclasses", "typing"}


@pytest.mark.parametrize(
    "module",
    [
        *("runner", "runner.__main__", "runner.hydra_callback", "runner.truth_table"),
        *("runner.runs.job", "runner.report.__main__", "runner.report.comparison", "runner.sweep.drive"),
    ],
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

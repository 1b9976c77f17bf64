"""Rules for the code: which package may import which, sizes, private names of libraries, docstrings, no machine's paths."""

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

ENTRY_POINTS = {"__main__", "hydra_callback", "truth_table", "testing", "diff", "restore", "hydra_plugins", "integrations"}
# Packages and top-level modules. Each may import those of earlier rows, and from its own row only what SIDEWAYS allows.
LAYERS: tuple[set[str], ...] = (
    {"errors", "contract", "tensors", "shards", "seeding", "tracing", "kept_state", "display", "sharing"},
    {"freezing"},
    {"proof", "training", "cost", "methods", "config"},
    {"assemble"},
    {"foresight"},
    {"experiment"},
    {"runs"},
    {"report", "shadowing"},
    {"sweep"},
    ENTRY_POINTS,
)
SIDEWAYS = {
    ("kept_state", "tensors"),
    ("sharing", "errors"),
    ("sharing", "tensors"),
    ("tensors", "errors"),
    ("tensors", "contract"),
    ("tensors", "shards"),
    ("shards", "errors"),
    ("seeding", "errors"),
    ("cost", "training.loop"),
    ("cost", "training.tasks"),
}
# The packages and modules that may import a library.
IMPORTED_ONLY_IN = {
    "hydra": {
        "config.compose",
        "config.help.completion",
        "config.help.text",
        "config.hydra_errors",
        "runs.job",
        "sweep",
        *ENTRY_POINTS,
    },
    "omegaconf": {"config", "runs.job", "sweep", *ENTRY_POINTS},
    "pandas": {"report", "proof.audit_report"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "torchmetrics": {"config.checks.metrics"},
    "lightning": {"integrations.lightning"},
    "transformers": {"integrations.transformers", "training"},
}
IMPORTED_AT_THE_TOP_IN = {"pandas": {"report"}, "torchmetrics": set()}  # other modules import it inside functions
# These do not import torch at the top of a file.
WITHOUT_TORCH = {"__init__", "contract", "errors", "display", "config", "runs", "report", "sweep", *ENTRY_POINTS}
# The private names of torch, Hydra and OmegaConf that a module uses because there is no public one. Avoid adding more.
PRIVATE_NAMES = {
    "hydra_plugins/freeze_sweeper.py": {"_parse_config", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
    "runner/config/check.py": {"_get_node"},
    "runner/config/hydra_errors.py": {"hydra._internal.utils.get_args_parser"},
    "runner/cost/operators/counter.py": {
        "_indices",
        "_schema",
        "_values",
        "torch._ops.HigherOrderOperator",
        "torch.utils._python_dispatch.TorchDispatchMode",
    },
    "runner/cost/operators/formulas.py": {"_c10d_functional", "_for_cpu", "_v2", "_x2"},
    "runner/cost/operators/layers.py": {"_native_batch_norm_legit"},
    "runner/cost/operators/outline.py": {
        "_C",
        "_disabled_torch_function_impl",
        "_is_param",
        "_is_view",
        "_make_wrapper_subclass",
        "torch._subclasses.fake_tensor.FakeTensor",
    },
    "runner/cost/operators/results.py": {
        "_C",
        "_DisableTorchDispatch",
        "_cdata",
        "_log_softmax",
        "_log_softmax_backward_data",
        "_schema",
        "_softmax",
        "_softmax_backward_data",
        "_unsafe_view",
        "torch._subclasses.fake_tensor.FakeTensorMode",
    },
    "runner/sharing/draws.py": {"torch.utils._python_dispatch.TorchDispatchMode"},
    "runner/cost/copies.py": {"torch._subclasses.fake_tensor.FakeTensorMode"},
    "runner/foresight/effects.py": {"_backward_hooks", "_post_accumulate_grad_hooks"},
    "runner/foresight/stand_in.py": {"_buffers", "_parameters"},
    "runner/sharing/fingerprint.py": {"_abc_impl"},
    "runner/freezing/matching.py": {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_modules", "_orig_mod"},
    "runner/freezing/trial/graph.py": {"_input_metadata"},
    "runner/methods/to_buffer.py": {"_buffers", "_parameters"},
    "runner/proof/audit.py": {"_optimizer_step_post_hooks"},
    "runner/proof/causes/places.py": {"_modules"},
    "runner/proof/causes/forward_hooks.py": {"_forward_hooks"},
    "runner/proof/causes/no_collectives.py": {"torch.utils._python_dispatch.TorchDispatchMode"},
    "runner/proof/causes/leak_tracer.py": {"_orig_mod"},
    "runner/proof/causes/watched_tensor.py": {"_buffers", "_parameters"},
    "runner/methods/prefix/unchanged.py": {"_version"},
    "runner/proof/marks.py": {"_version"},
    "runner/proof/causes/optimizer_copy.py": {"_hooks"},
    "runner/proof/results/notes.py": {"torch.nn.modules.batchnorm._BatchNorm", "torch.nn.modules.dropout._DropoutNd"},
    "runner/proof/optimizers.py": {"_optimizer_step_post_hooks"},
    "runner/proof/steps.py": {
        "_dynamo",
        "_optimizer_step_post_hooks",
        "_optimizer_step_pre_hooks",
        "torch._C._dynamo.eval_frame._debug_get_cache_entry_list",
        "torch._dynamo.callback",
        "torch.optim.optimizer._global_optimizer_post_hooks",
        "torch._dynamo.convert_frame.input_codes",
        "torch.optim.optimizer._global_optimizer_pre_hooks",
    },
    "runner/runs/exits.py": {"_run_exitfuncs"},
    "runner/runs/interrupts.py": {"torch._dynamo"},
    "runner/cost/slower.py": {
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_post_accumulate_grad_hooks",
    },
    "runner/proof/checkpoints/names.py": {"_buffers", "_modules", "_parameters"},
    "runner/proof/checkpoints/stored.py": {"_checkpoint_offset", "torch._subclasses.fake_tensor.FakeTensorMode"},
    "runner/testing/claims.py": {"_backward_hooks", "_hooks", "_post_accumulate_grad_hooks"},
    "runner/training/pretrained/auto_classes.py": {"_model_mapping"},
    "runner/tensors/checkpoint.py": {"_extra_state"},
    "runner/training/pretrained/loading.py": {"_metadata"},
    "runner/training/pretrained/prefixes.py": {"_metadata"},
    "runner/sweep/composing.py": {"hydra._internal.config_loader_impl.get_overrides_dirname"},
    "runner/sweep/worker.py": {"_return_value"},
    "runner/kept_state.py": {"_buffers", "_parameters"},
    "runner/tensors/entries.py": {"_type", "_buffers", "_compiled_call_impl", "_orig_mod", "_parameters"},
    "runner/tensors/nested.py": {"torch.utils._pytree.tree_map"},
}
FOLDERS = ("conf", "runner", "hydra_plugins", "tests", "benchmarks", "examples", "docs", ".ci")
TEXT_FILES = [
    path
    for path in chain(ROOT.glob("*.*"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    if path.is_file() and not {"__pycache__", ".hypothesis", ".git"} & set(path.parts)
]
MODULES = sorted(chain((ROOT / "runner").rglob("*.py"), (ROOT / "hydra_plugins").glob("*.py")))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}


def package_of(path: Path) -> str:
    """Return the package or top-level module of `runner` that a file belongs to, or `hydra_plugins`."""
    return module_of(path).split(".")[0]


def module_of(path: Path) -> str:
    """Return the dotted name of a module without `runner.`, or `hydra_plugins`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "runner" else parts[:1])


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """Yield what a file imports, as `module` or `module.name`: everywhere in it, or only at its top."""
    for node in ast.walk(TREES[path]) if everywhere else TREES[path].body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def project_imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (package, module) for each import of another package of this project."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "runner" and len(parts) > 1 and parts[1] != "__version__":
            parts = parts[1:]
        elif parts[0] != "hydra_plugins":
            continue
        if parts[0] != package_of(path):
            yield parts[0], ".".join(parts[:2])


def imported_libraries(path: Path, everywhere: bool = True) -> set[str]:
    """Return the top-level names of the imports of a file."""
    return {name.split(".")[0] for name in imports(path, everywhere)}


def test_every_package_is_in_the_table_of_layers_once():
    packages = Counter(chain(*LAYERS))
    assert set(packages) == {package_of(path) for path in MODULES} - {"__init__"}
    assert set(packages.values()) == {1}


def test_packages_import_only_packages_of_earlier_layers():
    row_of = {name: row for row, packages in enumerate(LAYERS) for name in packages}
    wrong = []
    for path in (path for path in MODULES if package_of(path) != "__init__"):
        for other, module in project_imports(path):
            allowed = {(package_of(path), other), (package_of(path), module)} & SIDEWAYS
            if row_of[other] >= row_of[package_of(path)] and not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_there_are_no_circular_imports():
    names = {module_of(path): path for path in MODULES}
    graph = {}
    for importer, path in names.items():
        found = {name.removeprefix("runner.") for name in imports(path) if name.startswith(("runner.", "hydra_plugins."))}
        found |= {"hydra_plugins" for name in found if name.startswith("hydra_plugins.")}
        found |= {name.rpartition(".")[0] for name in found}
        graph[importer] = found & names.keys()
    TopologicalSorter({name: imported - {"__init__"} for name, imported in graph.items() if name != "__init__"}).prepare()


def test_a_library_is_imported_only_where_the_table_allows_it():
    wrong = []
    for path in MODULES:
        names = {package_of(path), module_of(path)}
        for library in imported_libraries(path) & IMPORTED_ONLY_IN.keys():
            if not names & IMPORTED_ONLY_IN[library]:
                wrong.append(f"{path.relative_to(ROOT)} imports {library}")
        for library in imported_libraries(path, everywhere=False) & IMPORTED_AT_THE_TOP_IN.keys():
            if not names & IMPORTED_AT_THE_TOP_IN[library]:
                wrong.append(f"{path.relative_to(ROOT)} imports {library} at its top")
        if package_of(path) in WITHOUT_TORCH and "torch" in imported_libraries(path, everywhere=False):
            wrong.append(f"{path.relative_to(ROOT)} imports torch at its top")
    assert not wrong


def test_every_line_on_stderr_is_made_by_error_line():
    calls = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    to_stderr = [(path, call) for path, call in calls if "file=sys.stderr" in map(ast.unparse, call.keywords)]
    assert to_stderr
    assert not [path for path, call in to_stderr if not ast.unparse(call.args[0]).startswith("error_line(")]


LIBRARIES = ("torch", "hydra", "omegaconf")
# Public names that begin with an underscore.
PUBLIC_NAMES = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_", "_fields", "_asdict", "_replace", "_root_"}


def is_private(name: str) -> bool:
    """Return whether a name begins with one underscore and is not one of PUBLIC_NAMES."""
    return name.startswith("_") and not name.endswith("__") and name != "_" and name not in PUBLIC_NAMES


def private_names(path: Path) -> Iterator[str]:
    """Yield names with an underscore that a file imports from a library, uses as an attribute, or contains as a text."""
    tree, defined_here = TREES[path], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            defined_here |= {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            defined_here.add(node.attr)
    within_f_strings = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for name in imports(path):
        if name.split(".")[0] in LIBRARIES and any(map(is_private, name.split("."))):
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in defined_here:
            if ast.unparse(node.value) not in ("os", "sys"):
                yield node.attr
        elif isinstance(node, ast.Constant) and id(node) not in within_f_strings:
            yield from filter(is_private, re.findall(r"^_[A-Za-z]\w*$", str(node.value)))


def test_every_private_name_of_torch_hydra_and_omegaconf_is_listed():
    found = {str(path.relative_to(ROOT)): set(private_names(path)) for path in MODULES}
    found = {path: names for path, names in found.items() if names}
    assert found == PRIVATE_NAMES


def test_every_name_in_a_text_that_begins_with_runner_exists():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and re.fullmatch(r"runner(\.\w+)+", str(node.value)):
                name = str(node.value)
                if name.removeprefix("runner.") not in ("steps", "epochs", "config_hash", "run_name", "help", "log"):
                    assert find_spec(name) if is_module(name) else locate(name, str(path)), name


def is_module(name: str) -> bool:
    """Return whether a dotted name is a module or package of this project."""
    file = ROOT.joinpath(*name.split("."))
    return file.is_dir() or file.with_suffix(".py").is_file()


def test_a_call_has_at_most_four_positional_arguments():
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


def test_the_sweeper_plugin_imports_only_hydra_at_its_top():
    (plugin,) = (ROOT / "hydra_plugins").glob("*.py")
    assert imported_libraries(plugin, everywhere=False) == {"hydra", "dataclasses", "typing"}


@pytest.mark.parametrize(
    "module",
    [
        *("runner", "runner.__main__", "runner.hydra_callback", "runner.truth_table", "runner.testing"),
        *("runner.runs.job", "runner.report.__main__", "runner.report.comparison", "runner.sweep.drive"),
    ],
)
def test_importing_an_entry_point_does_not_import_torch(module):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modules_and_functions_are_short():
    wrong = []
    for path, tree in TREES.items():
        if len(path.read_text().splitlines()) > 300:
            wrong.append(f"{path.relative_to(ROOT)} has more than 300 lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 45:
                wrong.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not wrong


def test_packages_have_few_modules():
    count = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert count.pop(ROOT / "runner") + 1 <= 14  # __init__ is one of them
    assert max(count.values()) <= 12, count


def test_only_the_command_diff_has_a_public_name_of_the_package_and_no_module_imports_it():
    assert {path.stem for path in MODULES if path.parent == ROOT / "runner"} & set(runner.__all__) == {"diff"}
    assert not [path for path in MODULES if "runner.diff" in set(imports(path))]


def test_every_module_class_and_public_function_has_a_docstring():
    wrong = []
    for path, tree in TREES.items():
        if not ast.get_docstring(tree):
            wrong.append(str(path))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                is_small_class = isinstance(node, ast.ClassDef) and len(node.body) <= 25
                if not (ast.get_docstring(node) or is_small_class):
                    wrong.append(f"{path}: {node.name}")
    assert not wrong


def test_no_module_has_a_vague_name():
    assert not {path.stem for path in MODULES} & {"utils", "helpers", "common", "misc", "registry", "manager"}


def test_every_target_in_conf_exists():
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


def test_no_file_contains_a_path_of_a_machine_or_the_address_of_a_package_index():
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
    for path in TEXT_FILES:
        found = forbidden.search(path.read_text(errors="replace"))
        assert not found, f"{path}: {found and found[0]}"


def test_a_percentage_is_written_without_a_space_as_the_report_writes_it():
    spaced = re.compile(r"\d[\u00a0\u202f ]%(?!\})")  # `%}` ends a tag of a template
    texts = (path for path in TEXT_FILES if path.suffix in (".md", ".py", ".jinja", ".yaml"))
    assert [str(path.relative_to(ROOT)) for path in texts if spaced.search(path.read_text())] == []

"""Each file of `examples/` is the same short fine-tune, runs as it stands with one line of ours, and would notice a leak."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

NEVER_FROZEN = ("requires_grad_(False)", "requires_grad_(True)")
# For each example, a text in it and what would let its backbone move.
LEAKS = {
    "plain": NEVER_FROZEN,
    "with_accelerate": NEVER_FROZEN,
    "with_lightning": NEVER_FROZEN,
    "with_peft": ("loss.backward()", "loss.backward(); model.requires_grad_(True)"),
    "with_trainer": NEVER_FROZEN,
}
PATHS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
IS_SLOW = {name: pytest.mark.long for name in PATHS if name != "plain"}  # to import their libraries takes seconds
EXAMPLES = [pytest.param(name, marks=IS_SLOW.get(name, ())) for name in PATHS]


def executed(name, code, capsys):
    """Run the code of an example, and return what it prints in the end."""
    exec(compile(code, PATHS[name], "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out.rpartition("epoch")[2]


def test_there_is_an_example_for_each_kind_of_loop():
    assert PATHS.keys() == LEAKS.keys()


@pytest.mark.parametrize("name", PATHS)
def test_an_example_has_fewer_than_40_lines_and_one_of_ours(name):
    tree = ast.parse(text := PATHS[name].read_text())
    assert len(text.splitlines()) < 40
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "runner"]
    ((ours,),) = ([alias.name for alias in node.names] for node in imported)
    assert [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)].count(ours) == 1


@pytest.mark.filterwarnings("ignore")  # those of the libraries
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_holds_its_backbone_and_trains_its_head(name, capsys):
    told = executed(name, PATHS[name].read_text(), capsys)
    assert "held" in told
    assert "trained" in told
    assert "leaked" not in told.lower()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_tells_a_leak_if_its_backbone_is_not_frozen(name, capsys):
    code = PATHS[name].read_text()
    assert code.count(LEAKS[name][0]) == 1
    assert "leaked" in executed(name, code.replace(*LEAKS[name]), capsys).lower()

"""The command that compares two checkpoints: what it prints and writes, and how it exits."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import runner
from runner.contract import CHANGE_COLUMNS, MAX_ERROR_LINE
from runner.report.compare.discover import find_runs
from tests.conftest import ROOT, read_table

# `import runner.diff` would put the module in the place of the function `runner.diff`.
spec = spec_from_file_location("diff_command", ROOT / "runner" / "diff.py")
command = module_from_spec(spec)
spec.loader.exec_module(command)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two checkpoints in the current folder, in which the head and a frozen bias differ."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = {"body.0.weight": torch.randn(4, 4), "body.0.bias": torch.zeros(4), "head.weight": torch.randn(2, 4)}
    after = {name: each.clone() for name, each in before.items()}
    after["body.0.bias"][0] = 1e-30
    after["head.weight"] += 1
    torch.save(before, "a.pt")
    torch.save(after, "b.pt")
    return ["a.pt", "b.pt"]


def run(*arguments: str) -> int:
    return command.main(list(arguments))


def test_a_table_of_layers_is_printed_and_nothing_is_written(pair, capsys, tmp_path):
    assert run(*pair, "body") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["layer", "kind", "verdict", "tensors", "elements", "moved", "change"]
    assert lines[1:4] == [
        ["body.0", "parameter", "held", "1", "16", "0%", "0%"],
        ["body.0", "parameter", "leaked", "1", "4", "25%"],
        ["head", "parameter", "trained", "1", "8", "100%", lines[3][-1]],
    ]
    assert lines[4][:1] == ["LEAKED:"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt"]


@pytest.mark.parametrize(
    ("patterns", "code"),
    [(["body"], 3), (["body.0.weight"], 0), (["head"], 3), (["**", "--keep", "head", "body.0.bias"], 0)],
)
def test_strict_exits_with_3_for_a_leak_and_for_a_leak_alone(pair, capsys, patterns, code):
    assert run(*pair, *patterns, "--strict") == code
    assert run(*pair, *patterns) == 0
    assert ("strict: 1 frozen tensor" in capsys.readouterr().err) == (code == 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt"], "the following arguments are required: AFTER"),
        (["a.pt", "b.pt", "--strict"], "--strict needs patterns"),
        (["a.pt", "b.pt", "bodi"], "did you mean body"),
        (["a.pt", "b.pt", "@head"], "'@head' needs a model"),
        (["a.pt", "b.pt", "--keep", "head"], "give patterns, too"),
        (["a.pt", "none.pt"], "AFTER: 'none.pt' does not exist"),
        (["a.pt", "b.pt", "--wrong"], "unrecognized arguments: --wrong"),
        (["a.pt", "b.pt", "--key", "x"], "has no 'x' of --key x"),
        (["a.pt", "b.pt", "-o", "a.pt"], "cannot write into a.pt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(pair, capsys, arguments, message):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert len(error) <= MAX_ERROR_LINE + 1


def test_the_folder_has_the_rows_the_record_and_the_page(pair, capsys):
    assert run(*pair, "body", "-o", "it's a ünï dir/deep") == 0
    folder = Path("it's a ünï dir/deep")
    assert sorted(path.name for path in folder.iterdir()) == ["changes.csv", "report.html", "run.json"]
    rows = read_table(folder / "changes.csv")
    assert list(rows[0]) == list(CHANGE_COLUMNS)
    assert [row["verdict"] for row in rows] == ["held", "leaked", "trained"]
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["verdict"], record["counts"]["leaked"]) == ("finished", "leaked", 1)
    assert (record["before"], record["after"], record["frozen"], record["in_common"]) == ("a.pt", "b.pt", ["body"], 1.0)
    page = (folder / "report.html").read_text()
    assert "Leaked: 1 frozen tensor changed" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "page: " in capsys.readouterr().out
    assert run(*pair, "body", "-o", str(folder)) == 0  # its own files are written again


def test_the_same_checkpoints_give_the_same_bytes(pair):
    for folder in ("one", "two"):
        run(*pair, "body", "-o", folder)
    for name in ("changes.csv", "run.json", "report.html"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_a_page_of_another_program_is_left_as_it_is(pair, capsys):
    Path("out").mkdir()
    Path("out/report.html").write_text("mine")
    assert run(*pair, "-o", "out") == 2
    assert "was not written by freeze-runner" in capsys.readouterr().err
    assert Path("out/report.html").read_text() == "mine"


def test_a_report_of_runs_says_that_the_folder_is_none(pair, tmp_path):
    run(*pair, "-o", "out")
    found = find_runs([tmp_path])
    assert not found.folders
    assert "is the difference of two checkpoints, and no run" in found.problems[0]


def test_markdown_is_printed_alone(pair, capsysbinary):
    assert run(*pair, "body", "--markdown", "-o", "out") == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert lines[0] == "**LEAKED: 1 held, 1 leaked, 1 trained**"
    assert lines[2] == "| layer | kind | verdict | tensors | elements | moved | change |"
    assert lines[-1] == "- leaked: body.0.bias"


@pytest.mark.long
def test_the_command_leaves_the_function_diff_what_it_is(pair):
    code = "import runpy, sys; sys.argv = ['d', 'a.pt', 'b.pt']\ntry: runpy.run_module('runner.diff', run_name='__main__')\n"
    code += "except SystemExit: pass\nfrom runner import diff; assert callable(diff), diff"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert callable(runner.diff)


def test_the_page_of_the_docs_shows_what_the_command_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {
        "body.0.weight": torch.ones(4, 4),
        "body.0.bias": torch.arange(4.0),
        "head.weight": torch.ones(2, 4),
    }
    after = {name: each.clone() for name, each in before.items()}
    after["body.0.bias"][3] += 1.25e-3
    after["head.weight"] += 0.25
    save_file(before, "base.safetensors")
    save_file(after, "tuned.safetensors")
    page = (ROOT / "docs" / "diff.md").read_text()
    shown, printed = page.split("```bash\n")[1].split("\n```")[0], page.split("```text\n")[1].split("\n```")[0]
    assert run(*shlex.split(shown)[3:]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [line.split() for line in printed.splitlines()]

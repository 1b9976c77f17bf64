"""The README and `docs/` agree with the code: their links and commands, and the tables of words, columns and methods."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import hydra
import pytest

from runner import contract, run
from runner.config.compose import hydra_initialized
from runner.methods.base import TRAPS
from tests.conftest import ROOT
from tests.test_conformance import METHODS, build_method

README = ROOT / "README.md"
PAGES = {path.name: path.read_text() for path in [README, *sorted((ROOT / "docs").glob("*.md"))]}
COMMANDS = {
    line: name
    for name, text in PAGES.items()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m runner " in line
}


def section(page: str, heading: str) -> str:
    """Return the text beneath a heading of a page, up to the next heading."""
    return re.split(r"^#+ .*$", PAGES[page].split(f"\n## {heading}\n")[1], flags=re.M)[0]


def first_cells(table: str) -> list[str]:
    """Return the words in backticks, or numbers, of the first cell of each row of a table."""
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    return [word for cell in cells for word in re.findall(r"`([^`]+)`|^ (\d+) $", cell) for word in word if word]


def anchors(text: str) -> set[str]:
    """Return the names by which one can link to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_of_it(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            assert (folder / path).is_file(), link
            assert not anchor or anchor in anchors((folder / path).read_text()), link


def test_every_page_of_the_docs_is_linked_from_the_readme():
    linked = re.findall(r"\]\(([^)#\s]+)", PAGES["README.md"])
    assert {f"docs/{name}" for name in PAGES if name != "README.md"} <= set(linked)


def test_the_readme_has_at_most_120_lines():
    assert len(PAGES["README.md"].splitlines()) <= 120


def test_there_is_one_way_to_call_the_program_and_it_needs_an_activated_environment():
    for name, text in PAGES.items():
        lines = [line for line in text.splitlines() if ".venv" in line and "-m venv .venv" not in line]
        assert not [line for line in lines if "activate" not in line.lower()], name
        assert not re.findall(r"(?<!eval \"\$\()freeze-runner (?:-m |\w+=\w+ \w+=)", text), name


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=pytest.mark.long if re.search(r"launch=(ray|slurm)", each) else ())  # needs an extra
        for each in COMMANDS
    ],
)
def test_the_arguments_of_every_command_of_the_docs_can_be_composed(command):
    arguments = shlex.split(command.split("python -m runner ")[1], comments=True)
    with hydra_initialized():
        overrides = [text for text in arguments if text != "-m"]
        assert hydra.compose("config", [re.sub(r"^([\w.]+)=([\w.,]+)$", first_choice, text) for text in overrides])


def first_choice(match: re.Match[str]) -> str:
    """Return `key=VALUE` with the first of several values. Each of the others is checked to be a choice of its group."""
    group, values = match[1], match[2].split(",")
    if (ROOT / "conf" / group).is_dir():
        assert all((ROOT / "conf" / group / f"{value}.yaml").is_file() for value in values), match[0]
    return f"{group}={values[0]}"


def test_every_extra_of_the_docs_exists():
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.split(r"^\[", project.split("[project.optional-dependencies]\n")[1], flags=re.M)[0]
    given = {name for text in PAGES.values() for names in re.findall(r"'\.\[([\w,]+)\]'", text) for name in names.split(",")}
    assert {"data", "save", "test"} <= given <= set(re.findall(r"^(\w+) = ", extras, re.M))


def test_the_page_on_files_lists_the_files_and_columns_that_are_written():
    run_files, sweep_files = first_cells(section("files.md", "A run")), first_cells(section("files.md", "A sweep"))
    assert set(run_files) == {
        *(contract.CHANGES, contract.STEPS, contract.PHASES, contract.RECORD, contract.PAGE, contract.LOG, contract.WEIGHTS),
        f"{contract.HYDRA}/",
    }
    tables = {contract.COMPARISON, contract.COMPARISON_JSON, contract.CHANGES, contract.FAILURES}
    pictures = {contract.PAGE, contract.HEATMAP_SVG, contract.HEATMAP_PNG}
    assert set(sweep_files) == tables | pictures | {contract.SWEEP_CONFIG, contract.SWEEP_PLAN}
    words = re.findall(r"`([\w]+)`", section("files.md", "Columns of `changes.csv`"))
    assert tuple(words) == contract.CHANGE_COLUMNS
    words = re.findall(r"`(\w+)`", section("files.md", "A sweep"))
    assert {*contract.OUTCOME_COLUMNS, *contract.FAILURE_COLUMNS} - set(contract.VERDICTS) <= set(words)
    assert f"`{','.join(contract.STEP_COLUMNS)}`" in section("files.md", "A run")


def test_the_page_on_files_lists_every_verdict_cause_and_exit_code():
    assert set(re.findall(r"`(\w+)`", section("files.md", "Verdicts"))) == set(contract.VERDICTS)
    causes = section("files.md", "Causes")
    assert set(first_cells(causes)) == {cause for cause in get_args(contract.LeakCause) if "|" not in cause}
    idle = causes.split("The cause of an `idle` parameter is")[1]
    assert set(re.findall(r"`(\w+)`", idle)) == set(get_args(contract.IdleCause))
    codes = {value for name, value in vars(contract).items() if name.startswith("EXIT_")}
    assert {int(code) for code in first_cells(section("files.md", "Exit codes")) if code.isdigit()} == codes


def test_the_page_on_costs_lists_every_cost():
    words = set(re.findall(r"`(\w+)`", PAGES["costs.md"]))
    assert {key for key in contract.COSTS if not key.endswith(("_share", "_spread"))} <= words


def test_the_page_on_sweeps_lists_why_a_run_proves_nothing():
    assert all(f"`{defect}`" in PAGES["sweeps.md"] for defect in contract.DEFECTS)


def test_the_example_method_keeps_frozen_parameters_out_of_the_optimizer_and_holds():
    (code,) = re.findall(r"```python\n# runner/methods/exclude.py\n(.*?)```", PAGES["methods.md"], re.S)
    Path("example.py").write_text(code)
    result = run("method._target_=example.Exclude", "freeze=backbone", "model=mlp", "batches=3")
    assert result.verdict == "held"
    assert {row["group"] for row in result.rows if row["frozen"]} == {""}
    assert run("method._target_=example.Exclude", "freeze=none", "model=mlp", "batches=2").verdict == "held"


def test_the_table_of_methods_lists_the_traps_under_which_each_method_leaks():
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", section("methods.md", "How something is frozen"), re.M))
    assert rows.keys() == set(METHODS)
    for method, cell in rows.items():
        leaks = set(TRAPS) if cell.strip() == "everything" else set(re.findall(r"`(\w+)`", cell))
        assert leaks == build_method(method).leaks_under, method


def test_the_page_on_patterns_lists_every_file_of_conf_freeze():
    (listed,) = re.findall(r"`freeze=([\w|]+)` are files", PAGES["patterns.md"])
    assert sorted(listed.split("|")) == sorted(path.stem for path in (ROOT / "conf" / "freeze").glob("*.yaml"))

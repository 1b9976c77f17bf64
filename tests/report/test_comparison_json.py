"""`comparison.json`: its keys are those of the docs, numbers stay numbers, and it is valid JSON whatever a run holds."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from runner.contract import COMPARISON_SCHEMA, COSTS, VERDICTS
from runner.report.compare.run_set import Planned, RunSet
from runner.report.comparison_json import (
    ComparedRun,
    ComparedSetting,
    Comparison,
    comparison_json,
    json_text,
    number_or_text,
)
from runner.report.files import write_sweep_files
from runner.report.page.render import render_page
from runner.runs.read import read_run, run_folders
from tests.conftest import ROOT
from tests.run_folders import write_run, write_sweep

SWEEP = Path("sweep")
DOCS = (ROOT / "docs" / "comparison.md").read_text()
BLOCK = {"name": "layer1", "frozen": True, "factor": 1.0, "change_rel": 0.0}


def run_set(**more) -> RunSet:
    """The runs in the sweep's folder."""
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP, **more)


def documented(heading: str) -> list[str]:
    """The keys in the first column of the table below a heading of the docs."""
    table = DOCS.split(f"# {heading}\n")[1].split("\n#")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize(
    ("heading", "form"),
    [("The comparison for programs", Comparison), ("A setting", ComparedSetting), ("A run", ComparedRun)],
)
def test_the_docs_describe_each_key_and_no_other(heading, form):
    assert sorted(documented(heading)) == sorted(form.__annotations__)


def test_the_example_in_the_docs_names_the_schema_of_today():
    assert f'assert comparison["schema"] == "{COMPARISON_SCHEMA}"' in DOCS
    assert f"`{COMPARISON_SCHEMA}`" in DOCS


def test_what_is_known_is_there_and_what_is_not_is_missing():
    write_run(
        SWEEP,
        "requires_grad",
        "optimizer.lr=1e-3",
        "seed=1",
        cost={"flops_forward": 10, "flops_backward": 5},
        evaluation={"after": {"accuracy": 0.5, "loss": None}},
        phases=[{"first_step": 1, "last_step": 2, "frozen": 1, "trained": 1, "blocks": [BLOCK]}],
    )
    write_run(SWEEP, "zero_lr", "optimizer.lr=2", "seed=2", status="failed", reason="why", verdict=None, rows=(), losses=())
    found = json.loads(json_text(comparison_json(run_set(planned=[Planned(SWEEP, ("a", "b"), "go on")]))))
    assert (found["total"], found["left"]) == (4, {"failed": 1, "not begun": 2})
    one, two = found["runs"]
    assert one["values"] == {"method": "requires_grad", "optimizer.lr": 0.001, "seed": 1}
    assert (one["seed"], one["counts"]) == (1, {"held": 1, "trained": 1, "drifted": 1})
    assert one["held_out"] == {"accuracy": 0.5}
    assert (one["trained_part"], one["outcome"]) == ("identical", "held")
    assert one["phases"] == [{"first_step": 1, "last_step": 2, "frozen": 1, "trained": 1}]
    assert one["cost"] == {"flops_forward": 10, "flops_backward": 5}
    assert set(two) == {"run", "values", "status", "reason", "outcome", "seed", "config_hash"}
    assert [setting["name"] for setting in found["settings"]] == [setting.name for setting in run_set().ranked]
    assert {len(setting["runs"]) for setting in found["settings"]} == {1}


def test_no_key_is_unknown_to_the_docs_and_costs_and_counts_are_words_of_the_contract():
    write_sweep(SWEEP)
    write_run(SWEEP, "exclude", "seed=3", cost=dict.fromkeys(COSTS, 2), loss_not_finite_at=1)
    found = comparison_json(run_set())
    assert set(found) == set(documented("The comparison for programs"))
    assert {key for run in found["runs"] for key in run} <= set(documented("A run"))
    assert {key for setting in found["settings"] for key in setting} <= set(documented("A setting"))
    assert {key for run in found["runs"] for key in run.get("cost", ())} <= set(COSTS)
    assert {key for run in found["runs"] for key in run.get("counts", ())} <= set(VERDICTS)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_left_out_wherever_they_stand(number):
    # a cost and its baseline, whose ratio overflows
    none = {"_target_": "runner.methods.none.NoMethod"}
    write_run(SWEEP, "none", losses=(number,), loss_last=None, cost={"seconds_step": 1e-308}, method=none)
    write_run(SWEEP, "zero_lr", loss_first=number, cost={"seconds_step": 1e308, "saved_bytes": number})
    text = json_text(comparison_json(run_set()))

    def refuse(word: str):
        raise AssertionError(word)

    runs = json.loads(text, parse_constant=refuse)["runs"]
    assert any("seconds_step" in run["cost"] for run in runs)
    assert "null" not in text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0", 0),
        ("1e-3", 0.001),
        ("2.50", 2.5),
        ("1E5", 100000.0),
        ("nan", "nan"),
        ("1e999", "1e999"),
        ("9" * 300, "9" * 300),
        ("x" * 301, "x" * 149 + "…" + "x" * 150),
        ("007", "007"),
        ("1_000", "1_000"),
        ("true", "true"),
        ("", ""),
        ("٣", "٣"),
        ("[1,2]", "[1,2]"),
    ],
)
def test_a_value_of_the_command_line_is_a_number_where_json_can_write_it(text, value):
    assert number_or_text(text) == value
    assert type(number_or_text(text)) is type(value)


def test_the_file_and_the_page_hold_the_same_and_the_bytes_do_not_depend_on_the_place():
    write_sweep(SWEEP)
    shutil.copytree(SWEEP, Path("elsewhere") / "sweep")
    for sweep in (SWEEP, Path("elsewhere") / "sweep"):
        write_sweep_files(sweep)
    text = (SWEEP / "comparison.json").read_bytes()
    assert text == (Path("elsewhere") / "sweep" / "comparison.json").read_bytes()
    (inside,) = re.findall(r'<script type="application/json" id="comparison">(.*?)</script>', render_page(run_set()), re.S)
    assert json.loads(inside) == json.loads(text)


def test_half_a_character_in_a_name_is_still_json_and_the_page_is_still_written():
    write_run(SWEEP, "zero_lr", "tag=\ud800</script>\u2028", setting="x")
    write_run(SWEEP, "none", setting="x")
    write_sweep_files(SWEEP)
    assert len(json.loads((SWEEP / "comparison.json").read_text())["runs"]) == 2

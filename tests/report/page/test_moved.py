"""The tree of what moved in a run."""

from __future__ import annotations

import re

import pytest

from runner.report.page import moved
from runner.report.page.moved import bar_share, moved_section
from tests.report.page.parsing import section_of, text_of
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import change_row, remove_rows, write_run

ROWS = [
    change_row("stem.weight", "trained", 0.5, numel=100),
    change_row("stages.0.conv.weight", "held", numel=20, shape="4x5"),
    change_row("stages.0.norm.weight", "held", numel=4),
    change_row("stages.0.norm.mean", "drifted", 0.9, numel=4),
    change_row("stages.1.conv.weight", "idle", cause="no_gradient", numel=20),
    change_row("head.linear.weight", "leaked", 0.02, "weight_decay|optimizer_state", numel=30),
    change_row("head.linear.bias", "leaked", 0.01, "gradient", numel=3),
]


def section(rows=ROWS):
    write_run(SWEEP, rows=rows)
    return section_of(read_sweep(), "moved")


def top(found):
    return found.find("div[@class='moved']").findall("details")


def line(details) -> str:
    return text_of(details.find("summary"))


def cells(row) -> list[str]:
    return [text_of(cell) for cell in row]


def test_modules_come_in_the_order_leaked_idle_frozen_trained_and_those_that_leaked_are_open():
    modules = top(section())
    assert [line(each).split()[0] for each in modules] == ["head.linear", "stages", "stem"]
    assert [each.get("open") for each in modules] == ["", None, None]
    assert [line(each).split()[0] for each in modules[1].findall("details")] == ["1.conv", "0"]


def test_a_module_has_the_sums_over_all_that_is_in_it():
    stages = top(section())[1]
    assert line(stages) == "stages 1 idle, 2 held, 1 drifted 4 tensors, 48 elements 0%"


def test_a_chain_of_only_children_is_one_line():
    modules = top(section([change_row("a.b.c.weight", "held"), change_row("a.b.c.bias", "held")]))
    assert line(modules[0]).startswith("a.b.c 2 held")
    assert modules[0].findall("details") == []


def test_a_tensor_has_shape_verdict_cause_change_and_a_bar():
    head = top(section())[0]
    rows = head.findall("table/tbody/tr")
    assert [cells(row) for row in rows] == [
        ["weight 2", "leaked: weight_decay with optimizer_state", "2% L2 0.02"],
        ["bias 2", "leaked: gradient", "1% L2 0.01"],
    ]
    assert [bar.get("style") for bar in head.find("table").iter("i")] == ["width:66.0%", "width:60.0%"]


def test_buffers_are_folded_and_do_not_count_for_the_change_of_their_module():
    stages = top(section())[1]
    norm = next(each for each in stages.iter("details") if line(each).startswith("norm"))
    (buffers,) = norm.findall("details")
    assert line(buffers) == "Buffers: 1 drifted"
    assert buffers.get("open") is None
    assert cells(buffers.find("table/tbody/tr")) == ["mean 2", "drifted", "90% L2 0.9"]
    assert line(norm).endswith("0%")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"change_rel": "nan", "change_l2": "nan"}, "NaN"),
        ({"change_rel": "inf", "change_l2": "inf"}, "infinite"),
        ({"change_rel": ""}, "from 0 L2 0.5"),
        ({"change_rel": "", "change_l2": ""}, "?"),
        ({"change_rel": 1e-9}, "<0.001% L2 0.5"),
        ({"change_rel": 33660.0}, "3,370,000% L2 0.5"),
    ],
)
def test_a_change_that_is_no_percentage_is_said_in_words(columns, text):
    found = section([change_row("a.weight", "trained", 0.5, **columns)])
    assert text_of(found.findall(".//tbody/tr/td")[1]) == text


def test_a_number_of_elements_that_is_not_recorded_is_left_out():
    found = section([change_row("a.weight", "held", numel=""), change_row("b.weight", "held", numel=7)])
    assert [line(each) for each in top(found)] == ["a 1 held 1 tensor 0%", "b 1 held 1 tensor, 7 elements 0%"]
    assert "The model has 2 tensors:" in text_of(found)


def test_tensors_that_are_in_no_module_stand_at_the_top():
    found = section([change_row("scale", "leaked", 0.1), change_row("a.weight", "held")])
    assert cells(found.find("div[@class='moved']/table/tbody/tr")) == ["scale 2", "leaked", "10% L2 0.1"]


def test_of_a_large_model_those_that_leaked_or_stayed_idle_are_listed_and_the_sums_are_over_all(monkeypatch):
    monkeypatch.setattr(moved, "MAX_TENSOR_ROWS", 50)
    rows = [change_row(f"block{number // 10}.{number % 10}.weight", "held") for number in range(1000)]
    rows += [change_row("block7.last.weight", "leaked", 0.1), change_row("end.weight", "idle")]
    found = section(rows)
    assert len(found.findall(".//tbody/tr")) == 50
    assert "The model has 1,002 tensors, 2,004 elements: 1 leaked, 1 idle, 1,000 held." in text_of(found)
    assert line(top(found)[0]).startswith("block7 1 leaked, 10 held 11 tensors")
    assert "Not listed: 10 more tensors: 10 held" in text_of(top(found)[0])
    hidden = sum(int(number.replace(",", "")) for number in re.findall(r"Not listed: ([\d,]+) more", text_of(found)))
    assert hidden == 1002 - 50


def test_two_rows_of_one_name_both_stand_in_the_table():
    found = section([change_row("a.weight", "held"), change_row("a.weight", "leaked", 0.1)])
    assert len(found.findall(".//tbody/tr")) == 2


def test_a_bar_is_longer_the_farther_a_tensor_moved_and_full_from_100_percent_on():
    shares = [bar_share(change) for change in (1e-9, 1e-4, 1e-2, 0.3, 1.0, 400.0)]
    assert shares == sorted(shares)
    assert shares[-2:] == [1.0, 1.0]
    assert [bar_share(change) for change in (None, 0.0, float("nan"))] == [None] * 3


def test_several_runs_have_no_tree():
    write_run(SWEEP, "a")
    assert moved_section(read_sweep()) is not None
    write_run(SWEEP, "b")
    assert moved_section(read_sweep()) is None


def test_a_name_of_hundreds_of_parts_is_a_tree_that_can_be_rendered():
    names = [".".join("a" * depth) for depth in range(1, 150)]
    found = section([change_row(name, "held") for name in names])
    assert len(found.findall(".//tbody/tr")) == len(names)


def test_how_many_tensors_have_lost_their_rows_is_said_above_the_tree():
    remove_rows(write_run(SWEEP, rows=ROWS, name="damaged"), "head", "stem")
    text = "Not shown, because their rows are missing in changes.csv: tensors of damaged (2 leaked, 1 trained)."
    assert text in text_of(section_of(read_sweep(), "moved"))

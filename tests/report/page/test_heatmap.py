"""The heatmap: a table of percentages that unfolds from modules to tensors."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.figures.heatmap import build_heatmap
from runner.report.page import heatmap
from runner.report.page.heatmap import heatmap_cell, heatmap_section
from runner.runs.tables import tensor_row
from tests.report.page.colours import contrast
from tests.report.page.parsing import section_of, text_of
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, remove_rows, write_run, write_sweep


def section():
    return section_of(read_sweep(), "heatmap")


def cell(*rows) -> tuple[str, str]:
    return heatmap_cell([tensor_row({key: str(value) for key, value in row.items()}) for row in rows])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (change_row("a", "trained", 0.32), ("32%", "h4")),
        (change_row("a", "trained", 0.00002), ("<.1%", "h1")),
        (change_row("a", "trained", 0.004), ("0.4%", "h2")),
        (change_row("a", "trained", 0.034), ("3.4%", "h3")),
        (change_row("a", "trained", 1.0), ("100%", "h5")),
        (change_row("a", "trained", 232.0), (">999%", "h5")),
        (change_row("a", "held"), ("0", "")),
        (change_row("a", "leaked", 0.05, "gradient"), ("✗5.0%", "h3 bad")),
        (change_row("a", "idle"), ("○0", "idle")),
        (change_row("a", "returned"), ("↩0", "")),
        (change_row("a", "trained", 0.5, change_rel="nan"), ("NaN", "bad")),
        (change_row("a", "leaked", 0.5, "gradient", change_rel="inf"), ("✗inf", "bad bad")),
        (change_row("a", "trained", 0.5, change_rel=""), ("+", "hx")),
        (change_row("a", "leaked", 0.5, change_rel="", change_l2=""), ("✗?", "hx bad")),
        (change_row("a", "trained", 0.5, change_rel="", change_l2=""), ("?", "hx")),
        (change_row("a", "trained", 0.0, moved=True), ("<.1%", "h1")),
    ],
)
def test_a_cell_has_its_percentage_its_colour_and_a_sign_for_what_colour_alone_would_not_tell(row, expected):
    assert cell(row) == expected


def test_a_cell_of_several_tensors_has_the_largest_change_and_the_worst_sign():
    rows = change_row("a", "trained", 0.32), change_row("b", "leaked", 0.05), change_row("c", "held")
    assert cell(*rows) == ("✗32%", "h4 bad")
    assert cell() == ("", "")


def test_columns_are_runs_and_each_module_is_a_body_whose_rows_follow_its_own():
    write_sweep(SWEEP)
    table = section().find(".//table")
    headings = [text_of(heading) for heading in table.findall("thead/tr/th")]
    assert headings[:3] == ["module", "none seed 0", "none seed 1"]
    bodies = table.findall("tbody")
    assert [text_of(body.find("tr/th")) for body in bodies] == ["body 1 tensor", "head 1 tensor", "norm 1 tensor"]
    for body in bodies:
        first, *others = body.findall("tr")
        assert first.find("th").get("scope") == "rowgroup"
        assert first.find("th/details/summary") is not None
        assert [row.get("class") for row in others] == ["t"] * len(others)
        assert {len(row.findall("td")) for row in (first, *others)} == {len(headings) - 1}


def test_modules_in_which_something_leaked_come_first_and_open_unless_nothing_was_done_about_it():
    rows = [change_row("stem.weight", "held"), change_row("body.weight", "leaked", 0.1)]
    write_run(SWEEP, "none", rows=rows, method={"_target_": UNFROZEN_TARGET})
    write_run(SWEEP, "requires_grad", rows=rows[:1])
    opened = [details.get("open") for details in section().findall(".//tbody/tr/th/details")]
    assert opened == [None, None]
    write_run(SWEEP, "zero_grad", rows=rows)
    bodies = section().findall(".//tbody")
    assert [text_of(body.find("tr/th")) for body in bodies] == ["body 1 tensor", "stem 1 tensor"]
    assert [body.find("tr/th/details").get("open") for body in bodies] == ["", None]


def test_live_buffers_do_not_hide_in_the_row_of_a_module_that_its_parameters_held():
    write_run(SWEEP, "a", rows=[change_row("bn.weight", "held"), change_row("bn.mean", "drifted", 0.5)])
    write_run(SWEEP, "b", rows=[change_row("bn.weight", "held"), change_row("bn.mean", "drifted", 0.5)])
    rows = section().findall(".//tbody/tr")
    assert [[text_of(each) for each in row.findall("td")] for row in rows] == [["0", "0"], ["0", "0"], ["50%", "50%"]]


def test_a_tensor_that_a_run_does_not_have_is_an_empty_cell():
    write_run(SWEEP, "a", rows=[change_row("one.weight", "held")])
    write_run(SWEEP, "b", rows=[change_row("two.weight", "held")])
    rows = section().findall(".//tbody/tr")
    assert [[text_of(each) for each in row.findall("td")] for row in rows] == [["0", ""]] * 2 + [["", "0"]] * 2


def test_the_legend_is_in_percent_and_explains_each_sign_that_occurs():
    write_run(SWEEP, "a", rows=[change_row("a.weight", "idle"), change_row("b.weight", "leaked", 0.1)])
    write_run(SWEEP, "b")
    text = text_of(section().find("ul"))
    for words in ("0.1% to 1%", "100% and more", "○ trainable, but idle", "✗ frozen, but leaked"):
        assert words in text
    assert "NaN" not in text


def test_what_moved_from_exactly_0_has_a_colour_of_its_own_that_the_legend_shows_with_its_sign():
    for method in ("a", "b"):
        write_run(SWEEP, method, rows=[change_row("a.bias", "trained", 0.1, change_rel=""), change_row("b.bias", "held")])
    found = section()
    (item,) = (item for item in found.findall("ul/li") if "exactly 0" in text_of(item))
    assert (item.find("span").get("class"), text_of(item.find("span"))) == ("heatmap-swatch hx", "+")
    assert "aria-hidden" not in item.find("span").attrib
    kinds = {text_of(cell): cell.get("class") for cell in found.findall(".//td")}
    assert kinds == {"+": "hx", "0": None}


def test_what_moved_under_the_baseline_is_no_leak_and_the_caption_says_so():
    for number in range(2):
        write_run(SWEEP, "none", f"seed={number}", rows=LEAKED_ROWS, method={"_target_": UNFROZEN_TARGET})
    found = section()
    assert "✗" not in text_of(found)
    assert not any("bad" in cell.get("class", "") for cell in found.findall(".//td"))
    assert "Under method=none everything trains, so that what moves there is no leak." in text_of(found.find(".//caption"))
    write_run(SWEEP, "zero_grad", rows=LEAKED_ROWS)
    cells = [text_of(each) for each in section().find(".//tbody/tr").findall("td")]
    assert cells == ["25%", "25%", "✗25%"]


def test_a_long_name_of_a_column_is_shortened_and_stands_in_full_below():
    name = "n" * 290
    for end in "ab":
        write_run(SWEEP, "zero_lr", f"tag={name}{end}")
    found = section()
    headings = found.findall(".//thead/tr/th")[1:]
    assert [heading.get("title") for heading in headings] == [f"tag={name}a", f"tag={name}b"]
    assert all(len(text_of(heading)) <= heatmap.MAX_HEADING for heading in headings)
    assert [text_of(item) for item in found.findall(".//ol/li")] == [f"tag={name}a", f"tag={name}b"]


def test_of_very_many_tensors_those_that_leaked_are_listed_and_how_many_are_not(monkeypatch):
    monkeypatch.setattr(heatmap, "MAX_CELLS", 40)
    rows = [change_row(f"layer{number}.weight", "held") for number in range(200)]
    for method in ("a", "b"):
        write_run(SWEEP, method, rows=[*rows, change_row("last.weight", "leaked", 0.1)])
    found = section()
    names = [text_of(name) for name in found.findall(".//tr[@class='t']/th")]
    assert len(names) == 20
    assert "last.weight" in names
    assert "Listed are 20 of 201 tensors" in text_of(found.find(".//caption"))


def test_one_run_has_no_heatmap():
    write_run(SWEEP, "zero_lr", rows=HELD_ROWS)
    assert heatmap_section(read_sweep()) is None


@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_text_of_a_cell_is_legible_on_each_colour_in_light_dark_and_print(block):
    css = files("runner.report.page").joinpath("styles/heatmap.css").read_text()
    colours = dict(re.findall(r"--(heat-[\w-]+): #(\w{6})", css.split(":root")[1 + block].split("}")[0]))
    assert len(colours) == 12
    rgb = {name: "rgb({}, {}, {})".format(*bytes.fromhex(value)) for name, value in colours.items()}
    for level in (*range(1, 6), "x"):
        assert contrast(rgb[f"heat-{level}"], rgb[f"heat-{level}-ink"]) >= 4.5, (block, level)


def test_of_which_runs_rows_are_missing_is_said_below_the_table_and_the_figure():
    remove_rows(write_run(SWEEP, rows=LEAKED_ROWS, name="damaged"), "body")
    (write_run(SWEEP, "exclude", name="without") / "changes.csv").unlink()
    write_run(SWEEP, "restore")
    numbers = "1 leaked, 1 held, 1 trained, 1 drifted"
    text = f"Not shown, because their rows are missing in changes.csv: tensors of without and damaged ({numbers})."
    assert text in text_of(section())
    figure = build_heatmap(read_sweep().runs)
    assert figure is not None
    assert text in figure.caption

"""Blocks over steps in a real browser: cells as wide as they have steps, legible in each theme and width, for everybody."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from runner.report.files import write_run_page, write_sweep_files
from tests.report.page.browser.reading import HOSTILE, set_size, set_theme
from tests.report.page.colours import contrast
from tests.run_folders import write_run

pytestmark = pytest.mark.long

BLOCKS = ["conv1..bn1", "layer1", "layer2", "layer3", "layer4", "a.very.long.name.of.a.module.in.a.model.fc"]
CHANGES = (None, 0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def phases(names=BLOCKS, count=7, lengths=(1, 20)) -> list[dict]:
    """Phases in which one block more trains each time, the first of `lengths[0]` steps and the others of `lengths[1]`."""
    found, last = [], 0
    for number in range(count):
        first, last = last + 1, last + lengths[number > 0]
        blocks = [
            {
                "name": name,
                "frozen": place + number + 1 < len(names),
                "factor": 0.5,
                "change_rel": CHANGES[(place + number) % 7],
            }
            for place, name in enumerate(names)
        ]
        found.append({"first_step": first, "last_step": last, "frozen": 1, "trained": 1, "blocks": blocks})
    return found


@pytest.fixture
def page() -> Path:
    """The page of a sweep with a figure of few phases, one of many phases, and one of more blocks than rows."""
    write_run(Path("sweep"), "zero_lr", "schedule=gradual", phases=phases())
    write_run(Path("sweep"), "zero_lr", "schedule=block_coordinate", phases=phases(count=70))
    write_run(Path("sweep"), "zero_lr", "schedule=many", phases=phases([f"encoder.layers.{n}" for n in range(90)], 60))
    write_run(Path("sweep"), "zero_lr", "schedule=after", phases=[{**each, "blocks": []} for each in phases()])
    write_sweep_files(Path("sweep"))
    return Path("sweep") / "report.html"


def open_all(browser) -> None:
    """Unfold everything on the page."""
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")


def row(browser, name: str, figure: int = 0):
    """The cells of a row of a figure of the page."""
    found = browser.find_elements(By.CSS_SELECTOR, ".phases-map")[figure]
    names = [each.text for each in found.find_elements(By.CSS_SELECTOR, ".phases-name")]
    cells = found.find_elements(By.CSS_SELECTOR, ".phases-cells")[names.index(name)]
    return cells.find_elements(By.TAG_NAME, "i")


def test_a_cell_is_as_wide_as_its_phase_has_steps_and_the_axis_fits(opened):
    folder = write_run(Path("sweep"), phases=phases(count=3, lengths=(10, 40)))
    write_run_page(folder)
    browser = opened(folder / "report.html")
    widths = [cell.rect["width"] for cell in row(browser, "layer1")]
    assert [round(90 * width / sum(widths)) for width in widths] == [10, 40, 40]
    ticks = browser.find_elements(By.CSS_SELECTOR, ".phases-ticks i")
    assert [tick.text for tick in ticks] == ["1", "11", "51", "90"]
    for cell, tick in zip(row(browser, "layer1"), ticks, strict=False):
        assert tick.rect["x"] == pytest.approx(cell.rect["x"], abs=2)


@pytest.mark.parametrize("width", [390, 700, 1400])
def test_nothing_is_cut_and_no_label_lies_on_another(opened, page, width):
    browser = opened(page)
    set_size(browser, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for figure in browser.find_elements(By.CSS_SELECTOR, ".phases-map"):
        boxes = [tick.rect for tick in figure.find_elements(By.CSS_SELECTOR, ".phases-ticks i") if tick.is_displayed()]
        assert len(boxes) >= 3
        for box, after in pairwise(boxes):
            assert box["x"] + box["width"] <= after["x"] + 1
        for cell in figure.find_elements(By.CSS_SELECTOR, ".phases-cells:first-of-type i"):
            assert cell.rect["width"] >= 2
    for text in browser.find_elements(By.CSS_SELECTOR, ".phases-cells b"):
        if text.is_displayed():
            inner, outer = text.rect, text.find_element(By.XPATH, "..").rect
            assert outer["x"] <= inner["x"]
            assert inner["x"] + inner["width"] <= outer["x"] + outer["width"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_frozen_and_trained_look_different_and_texts_are_legible(opened, page, theme):
    browser = opened(page)
    set_theme(browser, theme)
    ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    frozen = browser.find_elements(By.CSS_SELECTOR, ".phases-cells .frozen")[0]
    assert "gradient" in frozen.value_of_css_property("background-image")
    for trained in browser.find_elements(By.CSS_SELECTOR, ".phases-cells .h1, .phases-cells .h5"):
        assert contrast(trained.value_of_css_property("border-bottom-color"), ground) >= 3
    shown = [text for text in browser.find_elements(By.CSS_SELECTOR, ".phases-cells b") if text.is_displayed()]
    assert len(shown) > 10
    for text in shown:
        cell = text.find_element(By.XPATH, "..")
        behind = cell.value_of_css_property("background-color")
        assert contrast(text.value_of_css_property("color"), ground if behind.endswith(" 0)") else behind) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_barrier_in_the_figures_and_their_tables(opened, page, axe, theme):
    browser = opened(page)
    set_theme(browser, theme)
    open_all(browser)
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run('#phases-section').then(arguments[arguments.length - 1])")
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]] == []
    for figure in browser.find_elements(By.CSS_SELECTOR, ".phases-map"):
        assert figure.accessible_name.endswith("The table below says the same")


def test_without_javascript_a_figure_and_its_table_are_there(opened, page):
    browser = opened(page)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.refresh()
    assert len(browser.find_elements(By.CSS_SELECTOR, ".phases-map")) == 3
    browser.find_element(By.CSS_SELECTOR, ".phases-figure summary").click()
    assert "frozen" in browser.find_element(By.CSS_SELECTOR, ".phases-table").text


def test_hostile_names_of_blocks_stay_text(opened):
    folder = write_run(Path("sweep"), phases=phases(list(HOSTILE)))
    write_run_page(folder)
    browser = opened(folder / "report.html")
    assert browser.find_elements(By.CSS_SELECTOR, "img, main script") == []
    titles = [cell.get_attribute("title") for cell in browser.find_elements(By.CSS_SELECTOR, ".phases-cells i:first-child")]
    assert [title.rpartition(", step 1: ")[0] for title in titles] == list(HOSTILE)

"""Costs, leaks, the heatmap and what moved, in a real browser: unfolding, by mouse and by keyboard, at each width."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from runner.report.files import write_run_page, write_sweep_files
from tests.report.page.browser.reading import set_size, set_theme
from tests.report.page.colours import contrast
from tests.report.page.test_costs import CHEAP, DEAR
from tests.run_folders import change_row, write_run

pytestmark = pytest.mark.long

LONG = "module." * 30 + "weight"
ROWS = [
    change_row("stem.weight", "trained", 0.5),
    change_row("body.weight", "leaked", 0.3, "weight_decay"),
    change_row("body.bias", "held"),
    change_row(LONG, "held"),
    change_row("norm.weight", "held"),
    change_row("norm.mean", "drifted", 0.2),
]


@pytest.fixture
def page() -> Path:
    for number in range(24):
        write_run(Path("sweep"), "zero_grad", "freeze=backbone", f"seed={number}", rows=ROWS, cost=DEAR)
    held = [change_row("stem.weight", "trained", 0.5), change_row("body.weight", "held")]
    write_run(Path("sweep"), "requires_grad", "freeze=backbone", "seed=0", rows=held, cost=CHEAP)
    write_sweep_files(Path("sweep"))
    return Path("sweep") / "report.html"


@pytest.fixture
def single() -> Path:
    folder = write_run(Path("sweep"), "zero_grad", rows=ROWS, cost=DEAR)
    write_run_page(folder)
    return folder / "report.html"


def shown_rows(browser, number: int) -> int:
    """The number of rows of tensors that are shown below a module of the heatmap."""
    body = browser.find_elements(By.CSS_SELECTOR, "#heatmap tbody")[number]
    return sum(row.is_displayed() for row in body.find_elements(By.CSS_SELECTOR, "tr.t"))


@pytest.mark.parametrize("scripts", [True, False])
def test_a_module_of_the_heatmap_unfolds_with_the_keyboard_without_a_script(opened, page, scripts):
    browser = opened(page)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.refresh()
    assert [shown_rows(browser, 0), shown_rows(browser, 1)] == [2, 0]
    summaries = browser.find_elements(By.CSS_SELECTOR, "#heatmap summary")
    summaries[1].send_keys(Keys.ENTER)
    assert shown_rows(browser, 1) == 1
    summaries[0].send_keys(Keys.ENTER)
    assert shown_rows(browser, 0) == 0


def test_the_first_column_of_the_heatmap_stays_when_it_is_scrolled(opened, page):
    browser = opened(page)
    set_size(browser, 390)
    heading = browser.find_element(By.CSS_SELECTOR, "#heatmap tbody th")
    before = heading.rect["x"]
    region = browser.find_element(By.CSS_SELECTOR, "[aria-labelledby=heatmap-caption]")
    browser.execute_script("arguments[0].scrollLeft = 300", region)
    assert browser.execute_script("return arguments[0].scrollLeft", region) == 300
    assert heading.rect["x"] == before


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_each_cell_of_the_heatmap_is_legible(opened, page, theme):
    browser = opened(page)
    set_theme(browser, theme)
    ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    kinds = set()
    for cell in browser.find_elements(By.CSS_SELECTOR, "#heatmap tbody:first-of-type tr:first-child td"):
        behind, ink = (cell.value_of_css_property(key) for key in ("background-color", "color"))
        kinds.add(behind)
        assert contrast(ink, ground if behind.endswith(" 0)") else behind) >= 4.5
    assert len(kinds) == 2


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("kind", ["page", "single"])
def test_nothing_is_wider_than_the_window(opened, request, width, kind):
    browser = opened(request.getfixturevalue(kind))
    set_size(browser, width)
    for summary in browser.find_elements(By.CSS_SELECTOR, "main details:not([open]) > summary"):
        browser.execute_script("arguments[0].parentElement.open = true", summary)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_tree_of_what_moved_unfolds_and_what_leaked_is_open(opened, single):
    browser = opened(single)
    modules = browser.find_elements(By.CSS_SELECTOR, ".moved > details")
    assert [module.get_attribute("open") is not None for module in modules] == [True, False, False, False]
    norm = next(module for module in modules if module.text.startswith("norm"))
    norm.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert norm.find_element(By.CSS_SELECTOR, "table").is_displayed()
    buffers = norm.find_element(By.CSS_SELECTOR, ".moved-buffers")
    assert "mean" not in buffers.text
    buffers.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert "mean" in buffers.text


def test_a_click_on_an_override_selects_it_whole(opened, page):
    browser = opened(page)
    for selector in (".costs-fix .paste", ".leaks-fix .paste"):
        code = browser.find_element(By.CSS_SELECTOR, selector)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", code)
        code.click()
        assert browser.execute_script("return String(getSelection())").strip() == code.text


def test_a_bar_is_as_long_as_its_share(opened, page):
    browser = opened(page)
    row = browser.find_element(By.CSS_SELECTOR, "#costs-1 tbody tr")
    bars = row.find_elements(By.CSS_SELECTOR, ".bar")
    shares = [bar.find_element(By.TAG_NAME, "i").rect["width"] / bar.rect["width"] for bar in bars]
    assert shares == pytest.approx([0.35, 1, 0.025, 0.5, 0.1, 0.1], abs=0.02)

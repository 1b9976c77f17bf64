"""Nobody is kept out: axe-core finds no barrier, the page fits a phone and a desk, and is complete without JavaScript."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from runner.report.files import write_run_page, write_sweep_files
from tests.report.page.browser.reading import set_size, set_theme
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, write_run

pytestmark = pytest.mark.long

NAN = {"losses": (2.0, float("nan")), "loss_last": None, "loss_not_finite_at": 2}
COST = {"flops_forward": 1e9, "flops_backward": 2e9, "flops_share": 0.34, "saved_bytes": 2e6, "saved_bytes_share": 0.5}
WHY_SMALL = {"flops_share": 0.98, "why_small": "the frozen part is at the end: backward still runs through it"}


def write_every_kind() -> Path:
    """Write a sweep in which runs held, leaked, became NaN, failed, were interrupted or skipped, and have long names."""
    sweep = Path("sweep")
    long = change_row("a_long_name." * 25 + "weight", "leaked", 0.5, "weight_decay")
    for seed in ("seed=0", "seed=1"):
        accuracy = {"evaluation": {"before": {"accuracy": 0.1}, "after": {"accuracy": 0.5 + int(seed[-1]) / 10}}}
        write_run(sweep, "requires_grad", "freeze=backbone", seed, cost=COST, **accuracy)
        write_run(sweep, "requires_grad", "freeze=fc", seed, cost=COST | WHY_SMALL, **accuracy)
        write_run(sweep, "zero_lr", "freeze=fc", seed, rows=(long, *LEAKED_ROWS), **accuracy)
        write_run(sweep, "none", "freeze=fc", seed, rows=LEAKED_ROWS, **NAN)
    write_run(sweep, "x" * 300, "freeze=fc", "seed=0", name="y" * 150)
    for status, reason in (("failed", "KeyError: 'x' (my.py:12)"), ("interrupted", "stop"), ("skipped", "no prefix")):
        rows = HELD_ROWS if status == "interrupted" else ()
        write_run(sweep, "detach", f"freeze={status}", status=status, reason=reason, verdict=None, rows=rows, losses=())
    write_sweep_files(sweep)
    return sweep


@pytest.fixture(params=["a sweep", "a run that leaked", "a run that held", "one method"])
def page(request) -> Path:
    """The path of a page of each kind."""
    if request.param == "a sweep":
        return write_every_kind() / "report.html"
    if request.param == "one method":
        for seed in ("seed=0", "seed=1"):
            write_run(Path("sweep"), "zero_lr", seed)
        write_sweep_files(Path("sweep"))
        return Path("sweep") / "report.html"
    rows = LEAKED_ROWS if request.param == "a run that leaked" else HELD_ROWS
    folder = write_run(Path("sweep"), "zero_lr", "freeze=fc", rows=rows, cost=COST | WHY_SMALL, notes=["a note"])
    write_run_page(folder)
    return folder / "report.html"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_barrier(opened, page, axe, theme):
    browser = opened(page)
    set_theme(browser, theme)
    browser.execute_script(axe)
    result = browser.execute_async_script("axe.run(document).then(arguments[0])")
    assert [(found["id"], found["nodes"][0]["html"]) for found in result["violations"]] == []
    assert len(result["passes"]) > 20


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_reaches_beyond_the_page_and_what_scrolls_has_a_name_and_can_be_focused(opened, page, width):
    browser = opened(page)
    set_size(browser, width)
    found, shown = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert found <= shown
    outside = browser.execute_script(
        """return [...document.querySelectorAll("main *")].filter(element => {
             const box = element.getBoundingClientRect();
             return box.width && box.right > innerWidth + 1 && !element.closest(".scroll");
           }).map(element => element.outerHTML.slice(0, 100))"""
    )
    assert outside == []
    for region in browser.find_elements(By.CSS_SELECTOR, ".scroll"):
        assert region.get_attribute("tabindex") == "0"
        assert region.accessible_name or not region.is_displayed()  # within folded details nothing has a name


def test_headings_come_in_order_and_each_section_can_be_linked_to(opened, page):
    browser = opened(page)
    levels = browser.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map(each => +each.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    links = browser.find_elements(By.CSS_SELECTOR, "nav a")
    assert len(links) == len(browser.find_elements(By.TAG_NAME, "h2"))
    for link in browser.find_elements(By.CSS_SELECTOR, "a[href^='#']"):
        target = link.get_attribute("href").split("#")[1]
        assert browser.execute_script("return document.getElementById(arguments[0]) !== null", target), target


def test_without_javascript_the_answer_comes_first_and_every_section_can_be_read(opened):
    browser = opened(write_every_kind() / "report.html")
    with_script = browser.find_element(By.TAG_NAME, "main").text
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.refresh()
    headings = [element.text.rstrip("#").strip() for element in browser.find_elements(By.CSS_SELECTOR, "h1, h2")]
    assert headings[1] == "Method by what is frozen"
    text = browser.find_element(By.TAG_NAME, "main").text
    places = [text.index(heading) for heading in headings]
    assert places[0] < 200
    assert set(text.split()) >= set(with_script.split()) - {"Filter", "↕"}
    assert browser.find_elements(By.CSS_SELECTOR, "button, input") == []


def test_the_first_column_stays_where_it_is_while_a_table_scrolls(opened):
    browser = opened(write_every_kind() / "report.html")
    set_size(browser, 390)
    region = browser.find_element(By.CSS_SELECTOR, ".scroll:has(#runs)")
    cell = region.find_element(By.CSS_SELECTOR, "tbody th")
    before = cell.rect["x"]
    browser.execute_script("arguments[0].scrollLeft = 300", region)
    assert browser.execute_script("return arguments[0].scrollLeft", region) == 300
    assert cell.rect["x"] == before


def test_a_cell_of_the_matrix_leads_to_its_runs_by_the_keyboard(opened):
    browser = opened(write_every_kind() / "report.html")
    link = browser.find_element(By.CSS_SELECTOR, "#matrix a.leaked")
    link.send_keys(Keys.ENTER)
    target = browser.execute_script("return document.querySelector(':target')")
    assert target.tag_name == "tr"
    assert "zero_lr" in target.text
    assert browser.execute_script("return document.querySelector(':target').getBoundingClientRect().top < innerHeight")

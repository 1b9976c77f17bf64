"""The page in a real browser, opened as a file: no errors, no requests, sorting, filtering, and names that stay text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from runner.report.files import write_run_page, write_sweep_files
from tests.report.page.browser.reading import HOSTILE, column, heading, texts
from tests.report.page.colours import luminance
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, write_run

pytestmark = pytest.mark.long


def test_the_page_opens_without_errors_and_without_requests(opened, sweep):
    assert opened(sweep).find_element(By.TAG_NAME, "h1").text == "So far: use requires_grad"


def test_the_page_contains_no_address_to_load(sweep):
    html = sweep.read_text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"'<)]*", html))
    assert {address for address in addresses if not address.startswith("http://www.w3.org/")} == set()
    assert not re.search(r"@import|url\((?!#)|<link(?! rel=\"icon\" href=\"data:,\")|<(img|iframe|object|embed)|src=", html)


def test_a_click_on_a_heading_sorts_numbers_as_numbers_and_a_second_click_reverses_the_order(opened, sweep):
    browser = opened(sweep)
    place = column(browser, "runs", "last loss")
    for direction in ("ascending", "descending"):
        heading(browser, "runs", "last loss").find_element(By.TAG_NAME, "button").click()
        assert heading(browser, "runs", "last loss").get_attribute("aria-sort") == direction
        losses = [float(text) for text in texts(browser, "runs", place) if text]
        assert len(losses) == 6
        assert losses == sorted(losses, reverse=direction == "descending")
        assert texts(browser, "runs", place)[-1] == ""  # runs without a loss come last
    assert heading(browser, "runs", "run").get_attribute("aria-sort") == "none"


def test_a_heading_can_be_focused_visibly_and_used_with_the_keyboard(opened, sweep):
    browser = opened(sweep)
    button = heading(browser, "runs", "method").find_element(By.TAG_NAME, "button")
    box = browser.find_element(By.CSS_SELECTOR, ".filter input")
    box.send_keys(Keys.TAB)
    for _ in range(20):
        if browser.switch_to.active_element == button:
            break
        browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element == button
    assert button.value_of_css_property("outline-style") == "solid"
    button.send_keys(Keys.ENTER)
    assert texts(browser, "runs", column(browser, "runs", "method")) == sorted(
        texts(browser, "runs", column(browser, "runs", "method"))
    )


def test_a_filter_keeps_the_rows_that_contain_all_its_words(opened, sweep):
    browser = opened(sweep)
    box = browser.find_element(By.CSS_SELECTOR, "input[aria-controls=runs]")
    box.send_keys("LEAKED zero_grad")
    assert texts(browser, "runs", column(browser, "runs", "method")) == ["zero_grad", "zero_grad"]
    assert browser.find_element(By.CSS_SELECTOR, ".filter output").text == "2 of 7"
    box.clear()
    box.send_keys(" ")
    assert len(texts(browser, "runs", 1)) == 7


def test_without_javascript_everything_is_visible_and_there_are_no_useless_buttons(opened, sweep):
    opened(sweep)
    browser = opened(sweep)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.refresh()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr")) == 7
    assert browser.find_elements(By.CSS_SELECTOR, "button, input") == []
    elements = browser.find_elements(By.CSS_SELECTOR, "h2, svg")
    assert len(elements) >= 8
    assert all(element.is_displayed() for element in elements)


@pytest.mark.parametrize("single", [False, True])
def test_a_hostile_name_stays_text(opened, tmp_path, single):
    rows = [change_row(name, "leaked", 0.1, "gradient") for name in HOSTILE] + list(HELD_ROWS[1:])
    more = {"reason": HOSTILE[0], "notes": list(HOSTILE), "versions": {HOSTILE[1]: HOSTILE[0]}, "device": HOSTILE[1]}
    folder = write_run(Path("sweep"), "none", f"tag={HOSTILE[1]}", rows=rows, **more)
    write_run(Path("sweep"), "zero_lr", f"tag={HOSTILE[0]}", rows=rows, losses=(1.0, 3.0))
    write_run(Path("sweep"), "detach", status="failed", reason=HOSTILE[2], rows=(), losses=())
    if single:
        write_run_page(folder)
        path = folder / "report.html"
    else:
        write_sweep_files(Path("sweep"))
        path = Path("sweep") / "report.html"
    browser = opened(path)
    assert browser.find_elements(By.CSS_SELECTOR, "img, main script, svg svg") == []
    text = browser.find_element(By.TAG_NAME, "main").get_attribute("textContent")
    assert all(name in text for name in HOSTILE)
    assert "49" not in text.split("{{")[1].split("}}")[0]
    if not single:
        named = browser.find_element(By.ID, "heatmap").get_attribute("textContent")
        assert all(name in named for name in HOSTILE)


def test_a_hostile_name_stays_text_in_heatmap_svg(browser, tmp_path):
    rows = [change_row(name, "leaked", 0.1, "gradient") for name in HOSTILE]
    write_run(Path("sweep"), "none", rows=rows)
    write_run(Path("sweep"), "zero_lr", rows=rows)
    write_sweep_files(Path("sweep"))
    browser.get((tmp_path / "sweep" / "heatmap.svg").as_uri())
    assert browser.execute_script("return document.documentElement.tagName") == "svg"
    drawn = browser.execute_script("return [...document.querySelectorAll('text')].map(text => text.textContent)")
    assert set(HOSTILE) <= set(drawn)
    assert browser.execute_script("return document.querySelectorAll('script, img, foreignObject').length") == 0


def test_tables_have_captions_and_scopes_and_figures_have_titles_and_descriptions(opened, sweep):
    browser = opened(sweep)
    for table in browser.find_elements(By.TAG_NAME, "table"):
        assert table.accessible_name
        assert all(
            cell.get_attribute("scope") in ("row", "col", "rowgroup") for cell in table.find_elements(By.TAG_NAME, "th")
        )
    pictures = browser.find_elements(By.CSS_SELECTOR, "main svg:not([aria-hidden])")
    assert len(pictures) == 1
    for picture in pictures:
        assert picture.get_attribute("role") == "img"
        for named in picture.get_attribute("aria-labelledby").split():
            assert browser.find_element(By.ID, named).get_attribute("textContent")
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    used = browser.execute_script("return [...document.querySelectorAll('use')].map(use => use.getAttribute('xlink:href'))")
    assert {name[1:] for name in used} <= set(ids)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_themes(opened, sweep, theme):
    opened(sweep)
    browser = opened(sweep)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    background = luminance(browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
    assert (background > 0.5) == (theme == "light")
    for selector, key in (
        ("h1", "color"),
        (".eyebrow", "color"),
        ("caption", "color"),
        ("td.held", "color"),
        ("td.leaked", "color"),
        ("nav a", "color"),
        ("svg text", "fill"),
    ):
        foreground = luminance(browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property(key))
        assert (max(foreground, background) + 0.05) / (min(foreground, background) + 0.05) >= 4.5, selector


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_defect_has_the_colour_of_a_leak_in_the_headline_and_in_the_tables(opened, theme):
    leaked = write_run(Path("sweep"), "zero_grad", rows=LEAKED_ROWS)
    untrained = write_run(Path("sweep"), "detach", rows=(HELD_ROWS[0], change_row("head.weight", "idle")))
    write_run(Path("sweep"), "zero_lr", loss_last=None, loss_not_finite_at=2)
    write_sweep_files(Path("sweep"))
    write_run_page(leaked)
    write_run_page(untrained)

    def colours(path: Path, selector: str) -> dict[str, str]:
        browser = opened(path)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found = browser.find_elements(By.CSS_SELECTOR, selector)
        return {element.text: element.value_of_css_property("color") for element in found}

    cells = colours(Path("sweep/report.html"), "#runs td")
    red = {cells[word] for word in ("leaked", "nothing trained", "loss not finite")}
    assert len(red) == 1
    assert red != {cells["zero_lr"]}
    assert {*colours(leaked / "report.html", "h1").values()} == red
    assert colours(untrained / "report.html", "h1") == {"Held, but nothing trained": red.pop()}


def test_a_printed_page_has_no_controls_and_no_cut_columns(opened, sweep):
    browser = opened(sweep)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not any(element.is_displayed() for element in browser.find_elements(By.CSS_SELECTOR, ".filter, nav"))
    assert {box.value_of_css_property("overflow-x") for box in browser.find_elements(By.CSS_SELECTOR, ".scroll")} == {
        "visible"
    }


def test_a_single_runs_page_shows_its_tensors(opened):
    folder = write_run(Path("sweep"), "none", rows=LEAKED_ROWS)
    write_run_page(folder)
    browser = opened(folder / "report.html")
    labels = [element.text for element in browser.find_elements(By.CSS_SELECTOR, "#moved-section summary b")]
    assert labels == ["body", "head", "norm"]  # what leaked comes first
    assert browser.find_element(By.CSS_SELECTOR, "#moved-section .leaked").is_displayed()

"""The sections about losses, phases, failures and the config in a real browser, and a page that loads itself again."""

from __future__ import annotations

import math
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from runner.report.files import write_sweep_files
from runner.sweep.live import LiveReport
from tests.report.page.browser.reading import HOSTILE, set_size, set_theme, texts
from tests.report.page.colours import contrast
from tests.run_folders import write_run

pytestmark = pytest.mark.long

SWEEP = Path("sweep")
PAGE = SWEEP / "report.html"
LONG = "n" * 300
PHASES = [
    {"first_step": 1, "last_step": 2, "frozen": 0, "trained": 3},
    {"first_step": 3, "last_step": 9, "frozen": 2, "trained": 1},
]


@pytest.fixture
def sections() -> Path:
    """The page of a sweep over a learning rate, with phases, NaN, long names, a failure and a skipped run."""
    passes = {"before": {"accuracy": 0.1}, "passes": [{"accuracy": 0.4}, {"accuracy": 0.6}], "after": {"accuracy": 0.6}}
    for method in ("zero_lr", "exclude", "none"):
        for number, rate in enumerate(("0.01", "0.1", "1")):
            for seed in (0, 1):
                losses = [2.0 + seed, 1.0 / (number + 1), math.nan if rate == "1" and method == "none" else 0.5 + seed]
                more = {"phases": PHASES, "evaluation": passes, "loss_last": losses[-1] if losses[-1] > 0 else None}
                write_run(SWEEP, method, f"optimizer.lr={rate}", f"seed={seed}", losses=losses, **more)
    method = {"method": {"_target_": f"runner.methods.{LONG}.M"}}
    write_run(SWEEP, "long", "optimizer.lr=0.1", losses=(2.0, 1.0), name="long", **method)
    failed = {"status": "failed", "rows": (), "losses": (), "verdict": None}
    write_run(SWEEP, "detach", "optimizer.lr=0.1", reason=f"mine.py, line 3: KeyError: '{LONG}'", **failed)
    write_run(SWEEP, "restore", "optimizer.lr=0.1", reason="no prefix", **failed | {"status": "skipped"})
    for config in SWEEP.glob("*/.hydra/config.yaml"):
        config.write_text(config.read_text() + "batches: 3\n")
    write_sweep_files(SWEEP)
    return PAGE


def test_every_curve_is_in_a_legend_that_shows_its_whole_name(opened, sections):
    browser = opened(sections)
    figures = browser.find_elements(By.CSS_SELECTOR, ".losses-figure")
    assert len(figures) == 3
    for figure in figures:
        drawn = figure.find_elements(By.CSS_SELECTOR, ".losses-chart > g")
        items = figure.find_elements(By.CSS_SELECTOR, ".losses-legend li")
        assert len(drawn) == len(items) > 0
        assert all(item.is_displayed() and item.text for item in items)
        for drawn_curve, item in zip(drawn, items, strict=True):
            title = drawn_curve.find_element(By.TAG_NAME, "title").get_attribute("textContent")
            assert title == item.text.replace("\n", "")
    assert any(LONG[:290] in item.text for item in browser.find_elements(By.CSS_SELECTOR, ".losses-legend li"))


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_and_texts_of_charts_are_legible_at_any_width(opened, sections, width):
    browser = opened(sections)
    set_size(browser, width)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    for section in ("losses", "phases", "failures", "config", "commands", "ran"):
        for box in browser.find_elements(By.CSS_SELECTOR, f"#{section}-section .scroll"):
            right = browser.execute_script("return arguments[0].getBoundingClientRect().right", box)
            assert right <= width, section
            whole = browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", box)
            assert width == 390 or whole <= 1, section
    for text in browser.find_elements(By.CSS_SELECTOR, ".losses-chart text"):
        assert browser.execute_script("return arguments[0].getBoundingClientRect().height", text) >= 10


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_their_keys_stand_out_in_both_themes(opened, sections, theme):
    browser = opened(sections)
    set_theme(browser, theme)
    ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    lines = browser.find_elements(By.CSS_SELECTOR, ".losses-figure path[stroke]")
    assert len(lines) > 10
    assert all(contrast(line.value_of_css_property("stroke"), ground) >= 3 for line in lines)
    text = browser.find_element(By.CSS_SELECTOR, ".losses-chart text").value_of_css_property("fill")
    assert contrast(text, ground) >= 4.5
    (lost, *_) = browser.find_elements(By.CSS_SELECTOR, ".losses-lost")
    assert contrast(lost.value_of_css_property("stroke"), ground) >= 3


def test_without_javascript_charts_phases_and_settings_are_there(opened, sections):
    browser = opened(sections)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.refresh()
    assert len(browser.find_elements(By.CSS_SELECTOR, ".losses-chart")) == 3
    assert "steps 3 to 9: 2 tensors frozen" in browser.find_element(By.ID, "phases").text
    summary = browser.find_element(By.CSS_SELECTOR, ".config-all summary")
    summary.click()
    assert browser.find_element(By.ID, "config-composed").is_displayed()


def test_the_links_of_failures_reach_files_of_the_run(opened, sections):
    browser = opened(sections)
    links = browser.find_elements(By.CSS_SELECTOR, "#failures a, #skipped a, #commands a")
    assert len(links) > 20
    for link in links:
        assert Path(unquote(urlparse(link.get_attribute("href")).path)).exists()
    assert texts(browser, "failures", 3) == ["mine.py, line 3"]


def test_hostile_names_stay_text_in_charts_failures_and_settings(opened):
    for name in HOSTILE:
        write_run(SWEEP, "zero_lr", f"tag={name}", f"all={HOSTILE[0]}", losses=(2.0, float(len(name))), phases=PHASES)
    failed = {"status": "failed", "rows": (), "losses": (), "verdict": None}
    write_run(SWEEP, "detach", f"all={HOSTILE[0]}", reason=f"{HOSTILE[0]}, line 3: {HOSTILE[1]}", **failed)
    write_sweep_files(SWEEP)
    browser = opened(PAGE)
    assert browser.find_elements(By.CSS_SELECTOR, "img, main script, svg svg") == []
    legend = browser.find_element(By.CSS_SELECTOR, ".losses-legend").text
    assert all(name in legend for name in HOSTILE)
    assert HOSTILE[0] in browser.find_element(By.ID, "config-given").text
    assert texts(browser, "failures", 3) == [f"{HOSTILE[0]}, line 3"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_barrier_in_these_sections(opened, sections, axe, theme):
    browser = opened(sections)
    set_theme(browser, theme)
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert [
        (violation["id"], [node["html"][:200] for node in violation["nodes"]]) for violation in found["violations"]
    ] == []


def test_the_page_of_a_running_sweep_shows_what_ended_without_a_hand_and_the_last_one_stays(opened):
    write_run(SWEEP, "zero_lr")
    live = LiveReport(SWEEP, 1)
    live.write()
    browser = opened(PAGE)
    assert "1 run: 1 finished" in browser.find_element(By.CSS_SELECTOR, ".eyebrow").text
    write_run(SWEEP, "none", losses=(2.0, 3.0))
    live.write()
    WebDriverWait(browser, 30).until(lambda browser: "2 runs: 2 finished" in browser.page_source)
    write_run(SWEEP, "exclude")
    write_sweep_files(SWEEP, live.kept)
    WebDriverWait(browser, 30).until(lambda browser: "3 runs: 3 finished" in browser.page_source)
    assert browser.find_elements(By.CSS_SELECTOR, "meta[http-equiv]") == []

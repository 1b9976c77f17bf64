"""What must be seen in a real browser: heads without gaps, what moved from 0, the baseline, long reasons, far values."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.files import write_sweep_files
from tests.report.page.browser.reading import set_size, set_theme
from tests.report.page.colours import contrast
from tests.run_folders import LEAKED_ROWS, change_row, write_run

pytestmark = pytest.mark.long

SWEEP = Path("sweep")
PAGE = SWEEP / "report.html"
REASON = "ValueError: " + "many words " * 80 + "at the end"
COST = {"flops_forward": 1e9, "flops_backward": 2e9, "flops_share": 0.34, "peak_memory_bytes": 2048.0}


@pytest.fixture
def written() -> Path:
    """The page of a sweep with the baseline, losses far away, curves on each other, tensors that moved from 0, failures."""
    rows = [*LEAKED_ROWS, change_row("head.bias", "trained", 0.1, change_rel="")]
    accuracy = {"evaluation": {"after": {"accuracy": 0.5}}, "cost": COST}
    for number, rate in enumerate(("1e-3", "1e-2", "1e-1", "1e30")):
        losses = (2.3, 3e29 if rate == "1e30" else 2.0 - number / 5)
        write_run(SWEEP, "zero_lr", f"optimizer.lr={rate}", "seed=0", losses=losses, **accuracy)
        near = (2.3, losses[1] * 1.0001)
        write_run(SWEEP, "restore", f"optimizer.lr={rate}", losses=near, rows=rows, **accuracy)
    write_run(SWEEP, "none", rows=rows, losses=(2.0, 3.0), method={"_target_": UNFROZEN_TARGET}, **accuracy)
    failed = {"status": "failed", "rows": (), "losses": (), "verdict": None}
    for seed in (0, 1):
        write_run(SWEEP, "detach", f"seed={seed}", reason=REASON, **failed)
    write_sweep_files(SWEEP)
    return PAGE


def test_on_a_phone_the_heads_of_tables_that_scroll_take_one_line(opened, written):
    browser = opened(written)
    set_size(browser, 390)
    heads = browser.find_elements(By.CSS_SELECTOR, "table:not(.plain):not(details table) thead tr")
    assert len(heads) >= 4
    for head in heads:
        if head.is_displayed():
            assert head.size["height"] < 40


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_moved_from_0_stands_out_from_what_did_not_move_and_the_baseline_from_a_leak(opened, written, theme):
    browser = opened(written)
    set_theme(browser, theme)
    ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    moved = browser.find_element(By.CSS_SELECTOR, "#heatmap td.hx")
    assert moved.value_of_css_property("background-color") not in (ground, "rgba(0, 0, 0, 0)")
    swatch = browser.find_element(By.CSS_SELECTOR, ".heatmap-swatch.hx")
    assert swatch.value_of_css_property("background-color") == moved.value_of_css_property("background-color")
    baseline = browser.find_element(By.CSS_SELECTOR, "#runs td.quiet")
    cells = {cell.text: cell for cell in browser.find_elements(By.CSS_SELECTOR, "#runs td")}
    assert cells["baseline"].value_of_css_property("color") == baseline.value_of_css_property("color")
    assert cells["leaked"].value_of_css_property("color") != baseline.value_of_css_property("color")
    assert contrast(baseline.value_of_css_property("color"), ground) >= 4.5


def test_a_long_reason_unfolds_by_the_keyboard(opened, written):
    browser = opened(written)
    for width in (1400, 390):
        set_size(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    folded = browser.find_element(By.CSS_SELECTOR, ".failures-reasons details")
    closed = folded.size["height"]
    folded.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert folded.size["height"] > 2 * closed
    assert folded.text.endswith("at the end")


def test_values_far_away_leave_the_others_their_place_and_each_curve_shows(opened, written):
    browser = opened(written)
    for chart in browser.find_elements(By.CSS_SELECTOR, ".losses-chart"):
        box = chart.rect
        for text in chart.find_elements(By.TAG_NAME, "text"):
            assert box["x"] <= text.rect["x"]
            assert text.rect["x"] + text.rect["width"] <= box["x"] + box["width"]
    offsets = browser.execute_script(
        "return [...document.querySelectorAll('.losses-chart path[stroke-dashoffset]')].map(each => each.getAttribute('d'))"
    )
    assert offsets
    assert browser.find_elements(By.CSS_SELECTOR, ".losses-cut")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_barrier_here(opened, written, axe, theme):
    browser = opened(written)
    set_theme(browser, theme)
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found["violations"]] == []

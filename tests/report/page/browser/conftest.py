"""A real browser for the tests of the page: it opens pages as files, and must log nothing and load nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from shutil import which

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from runner.report.files import write_sweep_files
from tests.run_folders import write_sweep

CHROMIUM, CHROMEDRIVER = which("chromium"), which("chromedriver")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)


def start_browser(profile: Path) -> webdriver.Chrome:
    """Start headless Chromium with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    driver.get("about:blank")  # the page of a new tab would still be loading when the first test opens its own
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page of the test's folder, and checks that the browser logs nothing and loads nothing else."""

    def open_page(path: Path):
        browser.get_log("browser"), browser.get_log("performance")
        browser.get((tmp_path / path).as_uri())
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        requested = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in requested if not url.startswith("data:")] == [(tmp_path / path).as_uri()]
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [], "media": ""})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def sweep() -> Path:
    write_sweep(Path("sweep"), leaking="zero_grad")
    write_sweep_files(Path("sweep"))
    return Path("sweep") / "report.html"


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """The JavaScript of axe-core, which finds barriers for people with disabilities; npm fetches it."""
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "install", "--no-save", "--no-audit", "--no-fund", "axe-core@4"], cwd=folder, check=True)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()

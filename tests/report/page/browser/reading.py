"""What the browser tests read off a page: cells of its tables; and how it is shown."""

from __future__ import annotations

from selenium.webdriver.common.by import By

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style><svg onload=alert(3)>",
    "$\\frac{a}{b}$ & &lt;b&gt; _x_ {{ 7 * 7 }}",
    "]]><!--",
)


def texts(browser, table: str, column: int) -> list[str]:
    """The texts of the visible cells in a column, counted from 1."""
    cells = browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr:not([hidden]) > :nth-child({column})")
    return [cell.text for cell in cells]


def heading(browser, table: str, name: str):
    """The heading of the column whose name begins with `name`."""
    found = browser.find_elements(By.CSS_SELECTOR, f"#{table} thead th")
    return next(element for element in found if element.text.startswith(name))


def column(browser, table: str, name: str) -> int:
    """The number of the column whose name begins with `name`, from 1."""
    found = browser.find_elements(By.CSS_SELECTOR, f"#{table} thead th")
    return 1 + next(number for number, element in enumerate(found) if element.text.startswith(name))


def set_theme(browser, theme: str) -> None:
    """Let the browser prefer `light` or `dark`."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})


def set_size(browser, width: int, height: int = 1000) -> None:
    """Give the page a width and height in CSS pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

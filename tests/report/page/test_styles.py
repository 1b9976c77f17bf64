"""The colours of the page: each pair of text and ground in the styles has enough contrast, in light, dark and print."""

from __future__ import annotations

import re

import pytest

from runner.report.page.render import styles
from tests.report.page.colours import contrast

TEXT = ("ink", "quiet", "link", "good", "bad", "warn")
GROUNDS = ("ground", "band")


def themes() -> dict[str, dict[str, str]]:
    """Return {theme: {variable: colour}} of the variables that the styles declare."""
    css = styles()
    blocks = {"light": "", "dark": "", "print": ""}
    for medium, block in re.findall(r"(@media [^{]+\{\s*)?:root\s*\{([^}]*)\}", css):
        theme = "dark" if "dark" in medium else "print" if "print" in medium else "light"
        blocks[theme] += block
    found = {theme: dict(re.findall(r"--([\w-]+):\s*(#[0-9a-fA-F]{3,8})", block)) for theme, block in blocks.items()}
    return {theme: found["light"] | values for theme, values in found.items()}


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("text", TEXT)
def test_text_has_a_contrast_of_4_5_on_each_ground(theme, ground, text):
    colours = themes()[theme]
    assert contrast(colours[text], colours[ground]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_a_bar_stands_out_from_its_track_and_from_the_ground(theme):
    colours = themes()[theme]
    assert contrast(colours["fill"], colours["track"]) >= 3
    assert contrast(colours["fill"], colours["ground"]) >= 3


def test_every_colour_is_a_variable_that_each_theme_declares():
    css = styles()
    rules = re.sub(r":root\s*\{[^}]*\}", "", css)
    assert re.findall(r"(?<![\w-])#[0-9a-fA-F]{3,8}\b(?!-)", rules) == []
    used = set(re.findall(r"var\(--([\w-]+)\)", css))
    assert used <= themes()["light"].keys()
    colours_of_light = set(themes()["light"])
    dark = re.findall(r"prefers-color-scheme: dark\)\s*\{\s*:root\s*\{([^}]*)\}", css)
    assert colours_of_light <= set(re.findall(r"--([\w-]+):", "".join(dark)))

"""The console is as wide as the terminal; what goes into a file or a pipe is not wrapped, and no path is broken."""

from __future__ import annotations

import pytest
from rich.text import Text

from runner.display.console import UNWRAPPED, create_console, hanging, labelled, print_unbroken


@pytest.mark.parametrize(
    ("columns", "width"), [(None, UNWRAPPED), ("60", 60), ("0", UNWRAPPED), ("x", UNWRAPPED), ("3", 20)]
)
def test_without_a_terminal_nothing_is_wrapped_unless_columns_is_set(columns, width, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert create_console().width == width


def test_a_path_is_not_broken_and_a_text_is_broken_at_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    console = create_console()
    print_unbroken(console, "page: /a/very/long/path/with [red]brackets/and spaces")
    for line in (*hanging(Text("HELD  one of two tensors"), console), *labelled("loss", "from 2.31 to 0.4", console, 6)):
        console.print(line)
    assert capsys.readouterr().out.splitlines() == [
        "page: /a/very/long/path/with [red]brackets/and spaces",
        "HELD  one of two",
        "  tensors",
        "loss  from 2.31 to",
        "      0.4",
    ]

"""The console that texts for people are printed to: as wide as the terminal; where there is none, no line is wrapped."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.text import Text

UNWRAPPED = 10_000  # the width of a console that wraps nothing
MIN_WIDTH = 20  # of a console; in less than that no text can be read


def create_console() -> Console:
    """Return a console that writes to stdout: as wide as the terminal, or as the environment variable COLUMNS says.

    If stdout is no terminal and COLUMNS is not set, no line is wrapped.
    """
    columns = os.environ.get("COLUMNS", "")
    given = max(int(columns), MIN_WIDTH) if columns.isdecimal() and int(columns) else None
    return Console(highlight=False, width=given or (None if sys.stdout.isatty() else UNWRAPPED))


def print_unbroken(console: Console, text: str) -> None:
    """Print a path or a command that a reader may copy: no line break is put into it, however long it is.

    Bytes of a file name that are no text are shown as `?`.
    """
    console.print(Text(text.encode(errors="replace").decode()), soft_wrap=True)


def hanging(text: Text, console: Console, indent: int = 2) -> list[Text]:
    """Return a text as lines that fit the console, broken at words; each line but the first begins with `indent` spaces."""
    first, *rest = _wrapped(text, console, console.width - indent)
    return [first, *(Text.assemble(" " * indent, line) for line in rest)]


def labelled(label: str, text: str, console: Console, column: int) -> list[Text]:
    """Return a text as lines behind a label, such as `loss     2.31 -> 0.42`; each line of the text begins at `column`."""
    first, *rest = _wrapped(Text(text), console, console.width - column)
    return [Text.assemble((label.ljust(column), "dim"), first), *(Text.assemble(" " * column, line) for line in rest)]


def _wrapped(text: Text, console: Console, width: int) -> list[Text]:
    """Return a text as lines of at most `width` characters, or of half of MIN_WIDTH if that is more."""
    lines = list(text.wrap(console, max(width, MIN_WIDTH // 2))) or [text]
    for line in lines:
        line.rstrip()
    return lines

"""Markdown for a pull request or the summary of a CI job: tables, and texts in which GitHub and GitLab see no markup."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from runner.display.table import Cell, Column, without_empty

# What Markdown, GitHub or GitLab would not show as it is: emphasis, code, links, cells, math, HTML, :emoji:, and references
# such as @name, #1, ~label, !1, %1, which also notify people. An underscore within a word is one.
MARKUP = re.compile(r"[\\`*\[\]|@#$~&]|<[A-Za-z/!?]|(?<![^\W_])_|_(?![^\W_])|:[\w+-]+:|(?<!\w)[!%]\w")
NOT_PLAIN = re.compile(r"[^\w .,/=+-]|_")


def markdown_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table of GitHub's Markdown, without a line break at its end; "" if there are no rows.

    Of a column only the heading and its side count. What is empty in all rows is no column. Each cell reads as its text does
    (see `as_text`), without colours.
    """
    columns, rows = without_empty(columns, rows)
    if not columns:
        return ""
    headings = [as_text(column.heading) for column in columns]
    sides = ["---:" if column.on_right else "---" for column in columns]
    texts = [[as_text(str(cell)) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, sides, *texts))


def as_text(text: str) -> str:
    """Return a text as one line of Markdown that reads as the text does: words that have markup in them become code."""
    return " ".join(as_code(word) if MARKUP.search(word) else word for word in text.split())


def as_code(text: str) -> str:
    """Return a text without line breaks as code in Markdown, such as `layer*`; as HTML where a table would break it."""
    if "|" in text:
        return f"<code>{NOT_PLAIN.sub(lambda found: f'&#{ord(found[0])};', text)}</code>"
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def print_markdown(text: str) -> None:
    """Print a text to stdout as UTF-8, which GitHub and GitLab read, whatever the encoding of the terminal is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(f"{text}\n".encode(errors="replace"))
    sys.stdout.buffer.flush()

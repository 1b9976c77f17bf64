"""A table for the terminal that fits any width: columns are dropped by rank, texts folded at words, numbers never cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.text import Text

GAP = 2  # spaces between two columns
MAX_TEXT = 200  # characters of a cell; a longer text loses its middle
MAX_PIECE = 24  # the widest piece of a text for which columns are dropped, so that it is not broken
# Where a long word may be broken: after a sign; a number such as 0.1 or 1e-05 is one piece.
PIECES = re.compile(r"(?:\d(?:[.,]|e-)\d|[^\s./_=,:|-])*[./_=,:|-]?\s*")
Cell = str | Text


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: the first line of the column, which is never cut.
        rank: how soon the column is dropped where the table is too wide: that of the highest rank first, one of 0 never.
        least: the width to which texts in it may be folded; None for numbers and single words, which are never folded.
        on_right: whether its cells end at the same place, as numbers do.
    """

    heading: str
    rank: int = 0
    least: int | None = None
    on_right: bool = False


def number(heading: str, rank: int = 0) -> Column:
    """Return a column of numbers, which are aligned at their ends."""
    return Column(heading, rank, on_right=True)


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[Text]:
    """Return a table as lines of at most `width` characters: the headings, then the rows.

    What is empty in all rows is no column. Lines are longer than `width` only where even the columns of rank 0 do not fit.
    """
    columns, rows = without_empty(columns, rows)
    widths = column_widths(columns, rows, width)
    headings: list[Cell] = [Text(column.heading, style="dim") for column in columns]
    return [line for row in (headings, *rows) for line in _row_lines(columns, row, widths)]


def without_empty(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> tuple[list[Column], list[list[Cell]]]:
    """Return (columns, rows) of a table without the columns that are empty in all rows."""
    filled = [i for i in range(len(columns)) if any(str(row[i]) for row in rows)]
    return [columns[i] for i in filled], [[row[i] for i in filled] for row in rows]


def column_widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> dict[int, int]:
    """Return {number of a column: its width} for the columns that fit into `width`.

    While they do not fit, though all texts are folded, the column with the highest rank is dropped; of several, the last.
    A column is as wide as the widest piece of its texts; only where not even the columns of rank 0 fit so, as `least` says.
    """
    texts = [[column.heading, *(str(row[i]) for row in rows)] for i, column in enumerate(columns)]
    wanted = [max(map(cell_len, each)) for each in texts]
    least = [
        size if column.least is None else min(size, max(column.least, cell_len(column.heading)))
        for size, column in zip(wanted, columns, strict=True)
    ]
    whole = [max(size, min(MAX_PIECE, max(map(_widest_piece, each)))) for size, each in zip(least, texts, strict=True)]
    if _total(_fitting(columns, whole, width)) <= width:
        least = whole
    widths = _fitting(columns, least, width)
    left = max(width - _total(widths), 0)
    growing = sorted((i for i in widths if wanted[i] > least[i]), key=lambda i: wanted[i])
    for position, i in enumerate(growing):  # the shortest texts first, so that what they do not need goes to the others
        given = min(wanted[i] - least[i], left // (len(growing) - position))
        widths[i], left = widths[i] + given, left - given
    return widths


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> dict[int, int]:
    """Return {number of a column: its width} without the columns that must be dropped to fit into `width`.

    Those of rank 0 stay, also where they do not fit.
    """
    shown = dict(enumerate(widths))
    while _total(shown) > width and any(columns[i].rank for i in shown):
        del shown[max(shown, key=lambda i: (columns[i].rank, i))]
    return shown


def _total(widths: Mapping[int, int]) -> int:
    """Return the width of all columns together, with the gaps between them."""
    return sum(widths.values()) + GAP * (len(widths) - 1)


def folded(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` characters, broken at spaces, else after a sign such as `.`, else anywhere.

    Of a text of more than MAX_TEXT characters, the middle is replaced by `…`.
    """
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2 - 1]}…{text[-MAX_TEXT // 2 :]}"
    lines = [""]
    for part in _parts(text, width):
        if cell_len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _widest_piece(text: str) -> int:
    """Return the width of the widest piece into which a text is folded without breaking anything else than its signs."""
    return max((cell_len(piece.rstrip()) for piece in PIECES.findall(text)), default=0)


def _parts(text: str, width: int) -> Iterator[str]:
    """Yield the parts of a text that fit a width: its words; of a longer word its pieces; of a longer piece what fits."""
    for word in re.findall(r"\S+\s*", text):
        pieces = [word] if cell_len(word.rstrip()) <= width else PIECES.findall(word)
        for piece in pieces:
            yield from [piece] if cell_len(piece.rstrip()) <= width else chop_cells(piece, width)


def _row_lines(columns: Sequence[Column], row: Sequence[Cell], widths: dict[int, int]) -> list[Text]:
    """Return the lines of one row: as many as its cell with the most lines has."""
    cells = []
    for i, width in widths.items():
        parts = [row[i]] if cell_len(str(row[i])) <= width else folded(str(row[i]), width)
        cells.append([Text.assemble(part) for part in parts])
    lines = []
    for position in range(max(map(len, cells), default=0)):
        line = Text()
        for (i, width), texts in zip(widths.items(), cells, strict=True):
            text = texts[position] if position < len(texts) else Text()
            space = " " * (width - text.cell_len)
            line.append_text(Text(space) + text if columns[i].on_right else text + Text(space)).append(" " * GAP)
        line.rstrip()
        lines.append(line)
    return lines

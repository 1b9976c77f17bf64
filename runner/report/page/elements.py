"""What the sections of the page are made of: sections, and tables of cells. The templates turn them into HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runner.contract import DEFECTS
from runner.runs.text import MAX_CELL, shortened

LONG = "long"


class Column(NamedTuple):
    """A column of a table: its heading, and whether its cells are numbers (aligned right, sorted by size)."""

    name: str
    number: bool = False


class TableCell(NamedTuple):
    """A cell of a table.

    `kind`: its CSS class, such as `code`, `why`, or an outcome such as `held`; mostly empty. Of the kind LONG, the end of a
    long text unfolds. `share`: the length of the bar below the text, from 0 to 1; None for no bar. `link`: an address that
    the text links to, such as `#run-3`; empty for none. `sort`: the number by which the cell is sorted; None: by its text.
    """

    text: str
    kind: str = ""
    share: float | None = None
    link: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class PageTable:
    """A table of the page; `key` is its id, and the first cell of each row is the row's heading.

    `ids`: an id for each row, so that links reach it; empty for none.
    """

    key: str
    caption: str
    columns: list[Column]
    rows: list[list[TableCell]] = field(default_factory=list)
    ids: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page: its id, its heading, the template that renders it, and what the template needs.

    The template `templates/TEMPLATE.html.jinja` sees the section as `section`, and `data` as `section.data`.
    """

    key: str
    heading: str
    template: str
    data: dict[str, Any]


def table_section(heading: str, table: PageTable | None) -> Section | None:
    """Return a section that consists of one table; None if there is no table or it has no rows."""
    return Section(table.key, heading, "table", {"table": table}) if table and table.rows else None


def outcome_cell(outcome: str) -> TableCell:
    """Return a cell with the outcome of a run; a defect, such as `nothing trained`, has the colour of a leak."""
    return TableCell(outcome, "bad" if outcome in DEFECTS else outcome)


def value_cell(key: str, value: str | None, kind: str = "") -> TableCell:
    """Return a cell with the value of an override or a setting; in words where there is none.

    `value`: None if it was not given. `kind`: as in TableCell, for a value.
    """
    if value is None:
        return TableCell("default", "quiet")
    if not value:
        return TableCell("removed" if key.startswith("~") else "empty", "quiet")
    return TableCell(shortened(value, MAX_CELL), kind)


def first_rows_text(rows: int, limit: int) -> str:
    """Return the end of a table's caption: `; the first LIMIT of ROWS`, or an empty text if all rows are shown.

    `rows`: the number of rows before the table is cut. `limit`: the most rows that are shown.
    """
    return f"; the first {limit:,} of {rows:,}" if rows > limit else ""

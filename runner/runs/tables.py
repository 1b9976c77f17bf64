"""Read a run's tables: the rows of `changes.csv` and the losses of `steps.csv`, as far as they can be read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from sys import intern
from typing import NamedTuple

from runner.runs.text import parse_number, printable


class TensorRow(NamedTuple):
    """The part of a row of `changes.csv` that reports use: one parameter or buffer, and how it changed in training.

    `change_l2` is the L2 norm of the change, `change_rel` the change relative to the tensor's first norm; they are None
    where the file has no number.
    """

    name: str
    kind: str
    dtype: str
    frozen: bool
    moved: bool
    verdict: str
    cause: str
    change_l2: float | None
    change_rel: float | None


def read_rows(path: Path, required: tuple[str, ...], problems: list[str]) -> Iterator[dict[str, str]]:
    """Yield {column: text} for each row of a CSV file, as far as it can be read.

    `required`: columns without which nothing is yielded. For each kind of error a line of text is appended to `problems`.
    """
    incomplete = 0
    try:
        with path.open(encoding="utf-8", newline="") as source:
            reader = csv.reader(line.replace("\0", "") for line in source)  # Python 3.10 refuses a null byte
            columns = next(reader, [])
            if missing := [name for name in required if name not in columns]:
                what = "is empty" if not columns else f"has no column {' or '.join(missing)}"
                problems.append(f"{path.name} {what}")
                return
            for row in reader:
                if len(row) == len(columns):
                    yield dict(zip(columns, row, strict=True))
                else:
                    incomplete += 1
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, csv.Error) as error:
        why = "not text" if isinstance(error, ValueError) else getattr(error, "strerror", None) or str(error)
        problems.append(f"{path.name} cannot be read to its end: {why}")
    if incomplete:
        problems.append(f"{path.name}: {incomplete} incomplete {'row' if incomplete == 1 else 'rows'} ignored")


def read_tensors(path: Path, problems: list[str]) -> list[TensorRow]:
    """Return the rows of a `changes.csv`, one for each parameter and buffer.

    For each kind of error in the file a line of text is appended to `problems`.
    """
    return [tensor_row(row) for row in read_rows(path, ("name", "verdict"), problems)]


def tensor_row(row: dict[str, str]) -> TensorRow:
    """Turn a row of `changes.csv`, {column: text}, into a TensorRow.

    Columns that are missing in files of older versions become empty texts, False or None.
    """

    def text(column: str) -> str:
        return intern(printable(row.get(column, "")))

    return TensorRow(
        name=text("name"),
        kind=text("kind"),
        dtype=text("dtype"),
        frozen=row.get("frozen") == "True",
        moved=row.get("moved") == "True",
        verdict=text("verdict"),
        cause=text("cause"),
        change_l2=parse_number(row.get("change_l2", "")),
        change_rel=parse_number(row.get("change_rel", "")),
    )


def read_losses(path: Path, problems: list[str]) -> list[float]:
    """Return the loss of each step from a `steps.csv`, NaN where the file has no number.

    For each kind of error in the file a line of text is appended to `problems`.
    """
    losses = (parse_number(row["loss"]) for row in read_rows(path, ("step", "loss"), problems))
    return [math.nan if loss is None else loss for loss in losses]

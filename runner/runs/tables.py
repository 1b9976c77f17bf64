"""What a run measured: the rows of `changes.csv` and the losses of `steps.csv`, as far as they can be read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from sys import intern
from typing import NamedTuple

from runner.runs.text import clean, number


class TensorRow(NamedTuple):
    """A row of `changes.csv`, as far as the page speaks of it; numbers are None where there are none."""

    name: str
    kind: str
    dtype: str
    frozen: bool
    moved: bool
    verdict: str
    cause: str
    change_l2: float | None
    change_rel: float | None


def read_rows(path: Path, needs: tuple[str, ...], problems: list[str]) -> Iterator[dict[str, str]]:
    """A CSV file's rows as far as they can be read; what cannot be is one line in `problems`."""
    torn = 0
    try:
        with path.open(encoding="utf-8", newline="") as source:
            reader = csv.reader(line.replace("\0", "") for line in source)  # Python 3.10 refuses a null byte
            columns = next(reader, [])
            if missing := [name for name in needs if name not in columns]:
                what = "is empty" if not columns else f"has no column {' or '.join(missing)}"
                problems.append(f"{path.name} {what}")
                return
            for row in reader:
                if len(row) == len(columns):
                    yield dict(zip(columns, row, strict=True))
                else:
                    torn += 1
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, csv.Error) as error:
        why = "not text" if isinstance(error, ValueError) else getattr(error, "strerror", None) or str(error)
        problems.append(f"{path.name} cannot be read to its end: {why}")
    if torn:
        problems.append(f"{path.name}: {torn} torn {'row' if torn == 1 else 'rows'} left out")


def read_tensors(path: Path, problems: list[str]) -> list[TensorRow]:
    """The rows of a `changes.csv`."""
    return [tensor_row(row) for row in read_rows(path, ("name", "verdict"), problems)]


def tensor_row(row: dict[str, str]) -> TensorRow:
    """One row of `changes.csv`, whose columns may be those of another version."""

    def word(key: str) -> str:
        return intern(clean(row.get(key, "")))

    return TensorRow(
        name=word("name"),
        kind=word("kind"),
        dtype=word("dtype"),
        frozen=row.get("frozen") == "True",
        moved=row.get("moved") == "True",
        verdict=word("verdict"),
        cause=word("cause"),
        change_l2=number(row.get("change_l2", "")),
        change_rel=number(row.get("change_rel", "")),
    )


def read_losses(path: Path, problems: list[str]) -> list[float]:
    """The losses of a `steps.csv`, NaN where one is no number."""
    found = (number(row["loss"]) for row in read_rows(path, ("step", "loss"), problems))
    return [math.nan if loss is None else loss for loss in found]

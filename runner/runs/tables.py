"""Read a run's tables: the rows of `changes.csv` and the losses of `steps.csv`, as far as they can be read."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from sys import intern
from typing import NamedTuple

from runner.contract import CHANGES
from runner.runs.text import parse_number, printable

MAX_NAME = 300  # characters of a name, kind, shape, dtype, verdict or cause
MAX_DIGITS = 18  # of a number of elements


class TensorRow(NamedTuple):
    """The part of a row of `changes.csv` that reports use: one parameter or buffer, and how it changed in training.

    `kind`: `parameter` or `buffer`. `frozen`: whether the tensor was declared frozen. `moved`: whether any bit differs at
    the end. `verdict`: one word for how the tensor changed, such as `held`. `cause`: why a frozen tensor changed, or why a
    trainable one did not. `change_l2`: the L2 norm of the change. `change_rel`: `change_l2` divided by the L2 norm of the
    tensor's initial value. Both are None where the file has no number. `shape`: such as `64x3x7x7`, empty for a scalar.
    `numel`: the number of elements; None where the file has no number.
    """

    name: str
    kind: str
    shape: str
    numel: int | None
    dtype: str
    frozen: bool
    moved: bool
    verdict: str
    cause: str
    change_l2: float | None
    change_rel: float | None


def read_rows(path: Path, required: tuple[str, ...], problems: list[str]) -> Iterator[dict[str, str]]:
    """Yield {column: text} for each complete row of a CSV file, as far as the file can be read.

    `required`: the names of columns that the file must have; if one is missing, nothing is yielded. `problems`: a list to
    which a line of text is appended for each kind of error, such as a missing file. Errors are not raised.
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
    """Return the rows of the file `path`, a `changes.csv`: one for each parameter and buffer.

    For each kind of error in the file, a line of text is appended to `problems`.
    """
    tensors, wrong = [], 0
    for row in read_rows(path, ("name", "verdict"), problems):
        tensors.append(tensor_row(row))
        wrong += sum(bool(row.get(key)) and getattr(tensors[-1], key) is None for key in ("change_l2", "change_rel"))
    _report_wrong_numbers(path, wrong, problems)
    return tensors


def missing_rows(counts: Mapping[str, int], verdicts: Iterable[str]) -> dict[str, int]:
    """Return {verdict: how many rows with it are missing}, `leaked` first; empty if no row is, or if nobody counted them.

    `counts`: the entry of `run.json`, {verdict: number of tensors}. `verdicts`: those of the rows that could be read.
    """
    found = Counter(verdicts)
    missing = {verdict: number - found[verdict] for verdict, number in counts.items() if number > found[verdict]}
    return dict(sorted(missing.items(), key=lambda item: item[0] != "leaked"))


def missing_text(missing: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """Return how many rows are missing, such as `2 of 9 rows of changes.csv are missing: 1 leaked, 1 held`; "" if none is.

    `missing`: see `missing_rows`. `counts`: the entry of `run.json`.
    """
    number, total = sum(missing.values()), sum(counts.values())
    verdicts = ", ".join(f"{each:,} {verdict}" for verdict, each in missing.items())
    rows = f"{number:,} of {total:,} row{'' if total == 1 else 's'} of {CHANGES}"
    return f"{rows} {'is' if number == 1 else 'are'} missing: {verdicts}" if missing else ""


def tensor_row(row: dict[str, str]) -> TensorRow:
    """Convert a row of `changes.csv`, given as {column: text}, to a TensorRow.

    A column that is missing, as in files of older versions, gives an empty text, False or None.
    """

    def text(column: str) -> str:
        return intern(printable(row.get(column, ""), MAX_NAME))

    return TensorRow(
        name=text("name"),
        kind=text("kind"),
        shape=text("shape"),
        numel=_count(row.get("numel", "")),
        dtype=text("dtype"),
        frozen=row.get("frozen") == "True",
        moved=row.get("moved") == "True",
        verdict=text("verdict"),
        cause=text("cause"),
        change_l2=parse_number(row.get("change_l2", "")),
        change_rel=parse_number(row.get("change_rel", "")),
    )


def _count(text: str) -> int | None:
    """Return the number of something that a text gives; None if it gives none."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def read_losses(path: Path, problems: list[str]) -> list[float]:
    """Return the loss of each step from the file `path`, a `steps.csv`; NaN where the file has no number.

    For each kind of error in the file, a line of text is appended to `problems`.
    """
    texts = [row["loss"] for row in read_rows(path, ("step", "loss"), problems)]
    losses = [parse_number(text) for text in texts]
    _report_wrong_numbers(path, sum(loss is None for text, loss in zip(texts, losses, strict=True) if text), problems)
    return [math.nan if loss is None else loss for loss in losses]


def _report_wrong_numbers(path: Path, wrong: int, problems: list[str]) -> None:
    """Append a line to `problems` if `wrong`, the count of fields of a file that hold no number, is not 0."""
    if wrong:
        problems.append(f"{path.name}: {wrong} {'field is not a number' if wrong == 1 else 'fields are not numbers'}")

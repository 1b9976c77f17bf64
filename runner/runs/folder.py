"""A run's folder: the files of the contract, each written beside its name and renamed when it is whole."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runner.contract import CHANGES, HYDRA, LOG, RECORD, STEPS, Record

RUN_NAME = re.compile(r".+__.+__s\d+__[0-9a-f]{8}")  # of a run in a sweep, as runner.config.naming.run_name gives it


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then give it its name: a torn file never stands under a final name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, with the line ends as given."""
    write_whole(path, lambda beside: beside.write_bytes(text.encode()))


def discard(folder: Path, *names: str) -> None:
    """Remove files of a folder, those that are there and can be removed, and what was left of writing them."""
    for name in names:
        for path in (folder / name, *folder.glob(f".{name}.*.part")):
            with suppress(OSError):
                path.unlink()


def write_record(folder: Path, record: Record) -> None:
    """Write `run.json`."""
    write_text(folder / RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV: floats by `repr`, booleans as True and False, None as an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def holds_a_run(folder: Path) -> bool:
    """Whether a folder holds a run's files already."""
    return any((folder / name).exists() for name in (RECORD, CHANGES, STEPS, LOG, HYDRA))


class _Log(logging.FileHandler):
    """A log that a full disk silences: what it would say of that, nobody could write either."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send this project's log, and what others log as a warning or worse, to a file for as long as the block lasts."""
    handler = _Log(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("runner")
    level, propagate = ours.level, ours.propagate
    root.addHandler(handler)
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # the terminal has the summary
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.removeHandler(handler)
        ours.setLevel(level)
        ours.propagate = propagate
        handler.close()

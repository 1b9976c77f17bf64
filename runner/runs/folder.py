"""Write a run's folder: each file under a temporary name, which is renamed when the file is complete."""

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

RUN_NAME = re.compile(r".+__.+__s\d+__[0-9a-f]{8}")  # a run's folder in a sweep, see runner.config.naming.run_name


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary_path)` and rename the file to `path`, so that a file of that name is always complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all; line ends are written as they are in the text."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))


def remove_files(folder: Path, *names: str) -> None:
    """Remove the named files from a folder, and what `write_atomically` left of them when it was killed.

    Files that are missing or cannot be removed are ignored.
    """
    for name in names:
        for path in (folder / name, *folder.glob(f".{name}.*.part")):
            with suppress(OSError):
                path.unlink()


def write_record(folder: Path, record: Record) -> None:
    """Write `record` to the file `run.json` in a run's folder. Raises ValueError if it has a number that is not finite."""
    write_text(folder / RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a CSV file as text: a header with the columns, and a line for each dict in `rows`.

    Floats are written by `repr`, so that no digit is lost, booleans as True and False; None and missing keys are empty.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def contains_run(folder: Path) -> bool:
    """Return True if a folder has at least one of the files that a run writes."""
    return any((folder / name).exists() for name in (RECORD, CHANGES, STEPS, LOG, HYDRA))


class _LogHandler(logging.FileHandler):
    """A handler for a log file that ignores write errors: on a full disk they could not be logged either."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Inside the block, write the messages of the logger `runner`, and warnings of other loggers, to the file `path`."""
    handler = _LogHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, logger = logging.getLogger(), logging.getLogger("runner")
    level, propagate = logger.level, logger.propagate
    root.addHandler(handler)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the terminal shows the summary instead
    try:
        yield
    finally:
        root.removeHandler(handler)
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()

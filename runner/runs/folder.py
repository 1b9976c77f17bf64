"""Write the files of a run's folder. Each is written under a temporary name, and renamed when it is complete."""

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

from runner.contract import CHANGES, HYDRA, LOG, RECORD, STEPS, PhaseRecord, Record
from runner.runs.text import MAX_BLOCK_RECORDS, MAX_ITEMS, MAX_TEXT, shortened

RUN_NAME = re.compile(r".+__.+__s\d+__[0-9a-f]{8}")  # a run's folder in a sweep, see runner.config.naming.run_name


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write the file `path` completely or not at all.

    `write(temporary_path)` is called and must write the file under that temporary name. The file is then renamed to `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to a file in UTF-8, completely or not at all. Line ends are not converted."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))


def remove_files(folder: Path, *names: str) -> None:
    """Remove the named files from a folder, and temporary files of `write_atomically` that a killed process left.

    Files that are missing or cannot be removed are ignored.
    """
    for name in names:
        for path in (folder / name, *folder.glob(f".{name}.*.part")):
            with suppress(OSError):
                path.unlink()


def write_record(folder: Path, record: Record) -> None:
    """Write `record` to the file `run.json` in a run's folder, with no more of its texts and blocks than reports read.

    Raises ValueError if a number in `record` is NaN or infinite.
    """
    content = {**record, "reason": shortened(record["reason"], MAX_TEXT), "notes": _bounded(record["notes"])}
    content |= {"phases": bounded_blocks(record["phases"])} if "phases" in record else {}
    write_text(folder / RECORD, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _bounded(notes: Sequence[str]) -> list[str]:
    """Return at most MAX_ITEMS notes of at most MAX_TEXT characters; the last one says how many more there are."""
    kept = notes if len(notes) <= MAX_ITEMS else [*notes[: MAX_ITEMS - 1], f"and {len(notes) - MAX_ITEMS + 1:,} more notes"]
    return [shortened(note, MAX_TEXT) for note in kept]


def bounded_blocks(phases: Sequence[PhaseRecord]) -> list[PhaseRecord]:
    """Return the phases of a run, without the key `blocks` from the one on with which there are over MAX_BLOCK_RECORDS."""
    bounded: list[PhaseRecord] = []
    count = 0
    for phase in phases:
        count += len(phase.get("blocks", ()))
        counts = phase.copy()
        if count > MAX_BLOCK_RECORDS:
            counts.pop("blocks", None)
        bounded.append(counts)
    return bounded


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a CSV file as text: a header with the names of the columns, and one line for each dict in `rows`.

    A dict maps names of columns to values. Floats are written with all their digits (`repr`), booleans as True and False. A
    value that is None or missing gives an empty field.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def contains_run(folder: Path) -> bool:
    """Return True if a folder has a file that runs write: `run.json`, a table, `runner.log` or `.hydra`."""
    return any((folder / name).exists() for name in (RECORD, CHANGES, STEPS, LOG, HYDRA))


class _LogHandler(logging.FileHandler):
    """A logging handler that writes to a file and ignores write errors, such as those of a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append log messages to the file `path` inside the block.

    They are all messages of the logger `runner` from level INFO on, and the warnings and errors of other loggers.
    """
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

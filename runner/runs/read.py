"""What a run folder says of itself: read with care, made checked_record, and what could not be read said in words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from runner.contract import CHANGES, COST_TEXTS, HYDRA, LOG, RECORD, RUNNING, STATUSES, STEPS, VERDICTS, WITH_TABLES, Record
from runner.proof.verdict import finite
from runner.runs.folder import RUN_NAME
from runner.runs.hydra_files import read_overrides
from runner.runs.tables import TensorRow, read_losses, read_tensors
from runner.runs.text import clean, cleaned

RawRecord = dict[str, Any]
"""A record as it was read, of any version and with any value."""

KILLED = "the run left no run.json that can be read; it was killed"
GOES_ON = "the run left no run.json; it is still in progress, or was killed"
ALONE = re.compile(r"\d\d-\d\d-\d\d-\d{6}-[0-9a-f]{8}")  # the folder of a run that is in no sweep
TEXTS = ("reason", "verdict", "device", "setting", "buffers", "config_hash", "trained_digest")
LISTS = ("overrides", "notes", "couplings")
MAPPINGS = ("method", "versions", "git")
NUMBERS = ("loss_first", "loss_last", "seed", "threads")


@dataclass(frozen=True)
class Run:
    """One run: what it is called, its folder, its record with every key there, its tensors and losses, what is unread."""

    label: str
    folder: Path
    record: Record
    tensors: list[TensorRow] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """The verdict of a run that finished, else its status."""
        return str(self.record["verdict"] if self.finished and self.record["verdict"] else self.record["status"])

    @property
    def finished(self) -> bool:
        return bool(self.record["status"] == "finished")


def read_record(folder: Path) -> RawRecord | None:
    """A run folder's `run.json`, or None where there is none that can be read (the run was killed, or has not begun)."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "status" in record else None


def run_folders(sweep: Path) -> list[Path]:
    """The run folders below a sweep's folder, by name."""
    return sorted(path for path in sweep.iterdir() if is_run(path))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it has its record or its lock, or Hydra's files under a name or with a log of ours."""
    if (folder / RECORD).is_file() or (folder / RUNNING).is_file():
        return True
    return (folder / HYDRA).is_dir() and bool(
        RUN_NAME.fullmatch(folder.name) or ALONE.fullmatch(folder.name) or (folder / LOG).is_file()
    )


def read_run(folder: Path, label: str | None = None) -> Run:
    """A run folder, whatever is wrong with it."""
    problems: list[str] = []
    given = read_record(folder)
    record = checked_record(given, problems)
    if given is None and (folder / RUNNING).is_file():
        record["reason"] = GOES_ON
    if given is None and (folder / RECORD).is_file():
        problems.append(f"{RECORD} is torn, or no record of a run")
    record["overrides"] = record["overrides"] or read_overrides(folder)
    run = Run(clean(label or folder.name), folder, record, problems=problems)
    if record["status"] in WITH_TABLES:
        run.tensors.extend(read_tensors(folder / CHANGES, problems))
        run.losses.extend(read_losses(folder / STEPS, problems))
    return run


def tables_are_whole(folder: Path, record: Record) -> bool:
    """Whether a finished run's tables are there, with as many rows in `changes.csv` as the record counts, if it does."""
    problems: list[str] = []
    rows = len(read_tensors(folder / CHANGES, problems))
    read_losses(folder / STEPS, problems)
    return not problems and rows == (sum(record["counts"].values()) or rows)


def checked_record(record: RawRecord | None, problems: list[str]) -> Record:
    """A record with every key there and of its type: what older versions lack is empty, what is of a wrong type is said."""
    given: RawRecord = {"status": "failed", "reason": KILLED} if record is None else record
    wrong = [key for key in given if key in _KINDS and not _is(given[key], _KINDS[key])]
    taken = {key: given[key] for key in given if key not in wrong and given[key] is not None}
    made: RawRecord = {key: clean(taken.get(key, "")) for key in TEXTS}
    made |= {key: [clean(item) for item in taken.get(key, []) if isinstance(item, str)] for key in LISTS}
    made |= {key: cleaned(taken.get(key, {})) for key in MAPPINGS}
    made |= {key: finite(taken.get(key)) for key in NUMBERS}
    made |= {key: made[key] or None for key in ("verdict", "trained_digest")}
    made["looks"] = [look for look in taken.get("looks", []) if isinstance(look, int)]
    made["counts"] = {word: n if _is(n := taken.get("counts", {}).get(word), int) and n else 0 for word in VERDICTS}
    costs = taken.get("cost", {}).items()
    made["cost"] = {clean(key): finite(value) for key, value in costs if _is(value, (int, float))}
    made["cost"] |= {clean(key): clean(value) for key, value in costs if isinstance(value, str) and key in COST_TEXTS}
    made["status"] = taken.get("status")
    if made["status"] not in STATUSES:
        made["reason"] = clean(f"{RECORD} has a status that this version does not know: {given['status']!r}")
        made["status"] = "failed"
    if wrong:
        problems.append(f"{RECORD}: not of the expected type, taken as absent: {', '.join(wrong)}")
    return cast(Record, made)


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys((*TEXTS, "status"), str),
    **dict.fromkeys((*LISTS, "looks"), list),
    **dict.fromkeys((*MAPPINGS, "counts", "cost"), dict),
    **dict.fromkeys(NUMBERS, (int, float)),
}


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return value is None or (isinstance(value, kind) and not isinstance(value, bool))

"""Read a run's folder. Its files may be damaged: what cannot be read becomes a line in `problems`, not an exception."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from runner.contract import (
    CHANGES,
    HYDRA,
    LOG,
    RECORD,
    RUNNING,
    STATUSES,
    STATUSES_WITH_TABLES,
    STEPS,
    TEXT_COSTS,
    VERDICTS,
    BlockRecord,
    PhaseCounts,
    PhaseRecord,
    Record,
    RunVerdict,
)
from runner.proof.verdict import finite_or_none, outcome_of
from runner.runs.folder import RUN_NAME, bounded_blocks
from runner.runs.hydra_files import MAX_OVERRIDE, read_config, read_overrides
from runner.runs.tables import TensorRow, missing_rows, missing_text, read_losses, read_tensors
from runner.runs.text import MAX_CELL, MAX_ITEMS, MAX_LONG_LIST, MAX_TEXT, is_too_long, printable, printable_values

RawRecord = dict[str, Any]
"""The JSON object of a `run.json`, written by any version and not checked yet."""

KILLED = "the run left no run.json; it was killed"
UNREADABLE = "its run.json cannot be read"
IN_PROGRESS = "the run left no run.json; it is still in progress, or was killed"
SINGLE_RUN_NAME = re.compile(r"\d\d-\d\d-\d\d-\d{6}-[0-9a-f]{8}")  # a run's folder outside sweeps
TEXT_KEYS = ("reason", "verdict", "device", "setting", "buffers", "config_hash", "trained_digest", "nothing_frozen")
MAX_RECORD_BYTES = 10_000_000  # of a `run.json` that is read; real ones have a few thousand
LIST_KEYS = ("overrides", "notes", "couplings", "idle_in_phases")
LONG_LISTS = ("looks", "phases", "evaluation")  # keys of lists that may have up to MAX_LONG_LIST items
MAPPING_KEYS = ("method", "versions", "git", "shared")
NUMBER_KEYS = ("loss_first", "loss_last", "loss_not_finite_at", "seed", "threads", "batches", "trained_in_phases")


@dataclass(frozen=True)
class Run:
    """What was read from the folder of one run.

    Attributes:
        label: the run's name in reports.
        folder: the folder that was read.
        record: the content of its `run.json`; keys that are missing in the file have empty values.
        tensors: the rows of its `changes.csv`, one for each parameter and buffer.
        losses: the losses of its `steps.csv`, one for each step.
        problems: a line of text for each thing that could not be read.
        config: its composed config as {dotted key: value as text}; empty if it cannot be read.
        origin: {name: value} of what tells apart runs of several folders, machines or versions; mostly empty.
    """

    label: str
    folder: Path
    record: Record
    tensors: list[TensorRow] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """How the run ended, in one word or two, such as `held` or `nothing trained`: see `outcome_of`; else `running`."""
        return "running" if self.state == "running" else outcome_of(self.record)

    @property
    def held_out(self) -> dict[str, float | None]:
        """What was measured on held-out data after the training, such as {"loss": 0.4, "accuracy": 0.9}; mostly empty."""
        return dict(self.record["evaluation"].get("after", {}))

    @property
    def leaked(self) -> bool:
        """True if a frozen tensor had changed when the run ended, also where it was interrupted."""
        return bool(self.record["verdict"] == "leaked")

    @property
    def missing(self) -> dict[str, int]:
        """{verdict: number of tensors} of those that `run.json` counts and that have no row in `tensors`; mostly empty."""
        return missing_rows(self.record["counts"], (row.verdict for row in self.tensors))

    @property
    def state(self) -> str:
        """The run's status, such as `finished`; `running` if it left no record yet and may be in progress."""
        return "running" if self.record["reason"] == IN_PROGRESS else self.record["status"]

    @property
    def finished(self) -> bool:
        """True if the run trained to its end, so that its status is `finished`."""
        return bool(self.record["status"] == "finished")


def read_record(folder: Path) -> RawRecord | None:
    """Return the content of `run.json` in a run's folder, without checking its values; None if it cannot be read.

    A file of more than MAX_RECORD_BYTES is not read.
    """
    try:
        if (folder / RECORD).stat().st_size > MAX_RECORD_BYTES:
            return None
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "status" in record else None


def run_folders(sweep: Path) -> list[Path]:
    """Return the folders of the runs inside a sweep's folder, sorted by name."""
    return sorted(path for path in sweep.iterdir() if is_run_folder(path))


def is_run_folder(folder: Path) -> bool:
    """Return True if a folder is that of a run, finished or not.

    A folder is that of a run if it has a `run.json`, or if it has the file `.running`, which exists while a run is in
    progress. It is also one if it has the folder `.hydra` and in addition either a log file or a name of the form that this
    project gives to folders of runs.
    """
    if (folder / RECORD).is_file() or (folder / RUNNING).is_file():
        return True
    has_run_name = RUN_NAME.fullmatch(folder.name) or SINGLE_RUN_NAME.fullmatch(folder.name)
    return (folder / HYDRA).is_dir() and bool(has_run_name or (folder / LOG).is_file())


def read_run(folder: Path, label: str | None = None) -> Run:
    """Read a run's folder and return a Run. Nothing is raised: the Run's `problems` name what cannot be read.

    `label`: the run's name in reports, by default the folder's name. A run leaked if its `run.json` says so or one of its
    rows does.
    """
    problems: list[str] = []
    raw_record = read_record(folder)
    record = checked_record(raw_record, problems)
    if raw_record is None and (folder / RUNNING).is_file():
        record["reason"] = IN_PROGRESS
    if raw_record is None and (folder / RECORD).is_file():
        record["reason"] = UNREADABLE
        problems.append(f"{RECORD} cannot be read: it is incomplete, too large, or not the record of a run")
    record["overrides"] = record["overrides"] or read_overrides(folder)
    run = Run(printable(label or folder.name), folder, record, problems=problems, config=read_config(folder))
    if record["status"] in STATUSES_WITH_TABLES:
        run.tensors.extend(read_tensors(folder / CHANGES, problems))
        if run.tensors and run.missing:
            problems.append(missing_text(run.missing, record["counts"]))
        if any(row.verdict == "leaked" for row in run.tensors):
            record["verdict"] = "leaked"
        run.losses.extend(read_losses(folder / STEPS, problems))
    return run


def tables_are_complete(folder: Path, record: Record) -> bool:
    """Return True if `changes.csv` and `steps.csv` of a finished run can be read and `changes.csv` has all its rows.

    `record`: the content of the run's `run.json`. Its `counts` say how many rows `changes.csv` should have. If it has no
    counts, as in older versions, any number of rows is accepted.
    """
    problems: list[str] = []
    rows = len(read_tensors(folder / CHANGES, problems))
    read_losses(folder / STEPS, problems)
    return not problems and rows == (sum(record["counts"].values()) or rows)


def checked_record(raw: RawRecord | None, problems: list[str]) -> Record:
    """Return the content of a `run.json` with every key present and every value of the right type.

    `raw`: the JSON object as read, or None if the file could not be read. None gives a record with the status `failed` and a
    reason that says that the run was killed. Missing values become empty. Values of a wrong type are dropped, and too long
    ones are shortened; a line with their keys is appended to `problems`.
    """
    raw = {"status": "failed", "reason": KILLED} if raw is None else raw
    wrong = [key for key in raw if key in _TYPES and not _has_type(raw[key], _TYPES[key])]
    valid = {key: raw[key] for key in raw if key not in wrong and raw[key] is not None}
    record: RawRecord = {key: printable(valid.get(key, "")) for key in TEXT_KEYS}
    texts = {key: [item for item in valid.get(key, [])[:MAX_ITEMS] if isinstance(item, str)] for key in LIST_KEYS}
    record |= {key: [printable(item, _longest(key)) for item in items] for key, items in texts.items()}
    record |= {key: printable_values(valid.get(key, {})) for key in MAPPING_KEYS}
    record |= {key: finite_or_none(valid.get(key)) for key in NUMBER_KEYS}
    record["trained_digest"] = record["trained_digest"] or None
    record["loss_rose"] = raw.get("loss_rose") is True
    record["looks"] = [step for step in valid.get("looks", [])[:MAX_LONG_LIST] if _is_count(step)]
    phases = [phase for item in valid.get("phases", [])[:MAX_LONG_LIST] if (phase := _checked_phase(item))]
    record["phases"] = bounded_blocks(phases)
    counts = valid.get("counts", {})
    record["counts"] = {word: n if _is_count(n := counts.get(word)) else 0 for word in VERDICTS}
    verdict = "leaked" if record["counts"]["leaked"] else record["verdict"]
    record["verdict"] = verdict if verdict in get_args(RunVerdict) else None
    costs = list(valid.get("cost", {}).items())[:MAX_ITEMS]
    record["cost"] = {printable(key): finite_or_none(value) for key, value in costs if _has_type(value, (int, float))}
    record["cost"] |= {key: printable(value) for key, value in costs if isinstance(value, str) and key in TEXT_COSTS}
    record["evaluation"] = _checked_evaluation(valid.get("evaluation", {}))
    record["status"] = valid.get("status")
    if record["status"] not in STATUSES:
        record["reason"] = printable(f"{RECORD} has a status that this version does not know: {raw['status']!r}")
        record["status"] = "failed"
    if wrong:
        problems.append(f"{RECORD}: values of a wrong type, ignored: {', '.join(wrong)}")
    if too_long := [key for key in _TYPES if is_too_long(valid.get(key), _longest(key), _most_items(key))]:
        problems.append(f"{RECORD}: values that are too long, shortened: {', '.join(too_long)}")
    return cast(Record, record)


_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys((*TEXT_KEYS, "status"), str),
    **dict.fromkeys((*LIST_KEYS, "looks", "phases"), list),
    **dict.fromkeys((*MAPPING_KEYS, "counts", "cost", "evaluation"), dict),
    **dict.fromkeys(NUMBER_KEYS, (int, float)),
}


def _checked_phase(raw: Any) -> PhaseRecord | None:
    """Return an item of the entry `phases` of a `run.json`; None if it is not whole, or a count cannot be shown.

    It has the key `blocks` only if each of its blocks is whole, and no two have the same name.
    """
    keys = PhaseCounts.__annotations__
    if not isinstance(raw, dict) or not all(_is_count(number) or number == 0 for number in map(raw.get, keys)):
        return None
    phase = cast(PhaseRecord, {key: int(raw[key]) for key in keys})
    items = raw["blocks"] if isinstance(raw.get("blocks"), list) else []
    blocks = [block for item in items if (block := _checked_block(item))]
    if blocks and len({block["name"] for block in blocks}) == len(items):
        phase["blocks"] = blocks
    return phase


def _checked_block(raw: Any) -> BlockRecord | None:
    """Return a block of a phase; None if it is not whole. Its change is None if it is no finite number of 0 or more."""
    if not isinstance(raw, dict):
        return None
    name, frozen, factor, change = map(raw.get, ("name", "frozen", "factor", "change_rel"))
    factor, change = (finite_or_none(each) if _has_type(each, (int, float)) else None for each in (factor, change))
    if not isinstance(name, str) or not isinstance(frozen, bool) or factor is None or factor < 0:
        return None
    known = None if change is None or change < 0 else float(change)
    return {"name": printable(name, MAX_CELL), "frozen": frozen, "factor": float(factor), "change_rel": known}


def _checked_evaluation(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the entry `evaluation` of a `run.json` with numbers and None alone; what is nothing of the kind is left out."""
    passes = raw.get("passes")
    found: dict[str, Any] = {key: _numbers(raw[key]) for key in ("before", "after") if isinstance(raw.get(key), dict)}
    if isinstance(passes, list):
        found["passes"] = [_numbers(values) for values in passes[:MAX_LONG_LIST] if isinstance(values, dict)]
    return found


def _numbers(values: dict[str, Any]) -> dict[str, float | None]:
    """Return those items of a dict whose values are numbers or None; NaN and infinity become None."""
    items = list(values.items())[:MAX_ITEMS]
    return {printable(key, MAX_CELL): finite_or_none(value) for key, value in items if _has_type(value, (int, float))}


def _longest(key: str) -> int:
    """Return how many characters a text under a key of `run.json` may have; commands are made from overrides."""
    return MAX_OVERRIDE if key == "overrides" else MAX_TEXT


def _most_items(key: str) -> int:
    """Return how many items a list or dict under a key of `run.json` may have."""
    return MAX_LONG_LIST if key in LONG_LISTS else MAX_ITEMS


def _is_count(value: Any) -> bool:
    """Return True if `value` is a number of tensors or of a step: an int, more than 0, and small enough to be displayed."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53


def _has_type(value: Any, types: type | tuple[type, ...]) -> bool:
    """Return True if `value` is None or an instance of one of `types`. A bool is never accepted, not even as an int."""
    return value is None or (isinstance(value, types) and not isinstance(value, bool))

"""Write run folders, and sweep folders with runs in them, without running anything."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.contract import CHANGE_COLUMNS, CHANGES, LOG, RECORD, STEPS
from runner.proof.verdict import count_verdicts
from runner.runs.folder import csv_text

VERSIONS = {"python": "3.11.7", "freeze-runner": "0.1.0", "torch": "2.14.1"}


def change_row(name: str, verdict: str, change: float = 0.0, cause: str = "", **columns: Any) -> dict[str, Any]:
    """Return a row of `changes.csv` for a tensor of two elements; `columns` overrides any column."""
    is_buffer = verdict in ("still", "drifted")
    frozen = verdict in ("held", "leaked", "returned")
    row = dict.fromkeys(CHANGE_COLUMNS, "") | {
        "name": name,
        "kind": "buffer" if is_buffer else "parameter",
        "module_type": "Linear",
    }
    row |= {"shape": "2", "numel": 2, "dtype": "float32", "frozen": frozen, "group": "frozen" if frozen else "trainable"}
    row |= {"lr": 0.1, "requires_grad": not frozen, "initial_l2": 1.0, "change_l2": change, "change_rel": change}
    return row | {"change_max": change, "moved": change != 0, "verdict": verdict, "cause": cause} | columns


HELD_ROWS = (
    change_row("body.weight", "held"),
    change_row("head.weight", "trained", 0.5),
    change_row("norm.mean", "drifted", 0.1),
)
LEAKED_ROWS = (change_row("body.weight", "leaked", 0.25, "gradient"), *HELD_ROWS[1:])


def write_run(
    sweep: Path,
    method: str = "zero_lr",
    /,
    *other_overrides: str,
    rows: Sequence[Mapping[str, Any]] = HELD_ROWS,
    losses: Iterable[float] = (2.0, 1.5),
    name: str | None = None,
    **record: Any,
) -> Path:
    """Write the folder of a run in the folder `sweep` and return its path; `record` overrides values of `run.json`."""
    losses = list(losses)
    seed = next((text.removeprefix("seed=") for text in other_overrides if text.startswith("seed=")), "0")
    overrides = [f"method={method}", *other_overrides]
    config_hash = f"{zlib.crc32(repr(overrides).encode()):08x}"
    folder = sweep / (name or f"{method}__backbone__s{seed}__{config_hash}")
    (folder / ".hydra").mkdir(parents=True)
    class_name = "NoMethod" if method == "none" else "".join(part.title() for part in method.split("_"))
    full_record = {
        "status": "finished",
        "reason": "",
        "verdict": "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held",
        "counts": count_verdicts(rows),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "loss_rose": len(losses) > 1 and losses[-1] > losses[0],
        "phases": [],
        "looks": [1, 2] if rows else [],
        "notes": [],
        "overrides": overrides,
        "config_hash": config_hash,
        "method": {"_target_": f"runner.methods.{method}.{class_name}"},
        "buffers": "live",
        "setting": "-".join(other_overrides) or "one",
        "seed": int(seed),
        "threads": 1,
        "device": "cpu",
        "trained_digest": "same",
        "nothing_frozen": "",
        "shared": {},
        "couplings": [],
        "evaluation": {},
        "cost": {},
        "versions": VERSIONS,
        "git": {"commit": "0" * 40, "dirty": False},
        **record,
    }
    (folder / RECORD).write_text(json.dumps(full_record))
    (folder / LOG).write_text("a log\n")
    target = full_record["method"].get("_target_")
    given = (text.lstrip("+~").partition("=") for text in overrides if not text.startswith(("method=", "seed=")))
    composed = "".join(f"{json.dumps(key)}: {json.dumps(value)}\n" for key, _, value in given)
    (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\nmethod:\n  _target_: {target}\n{composed}")
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {json.dumps(text)}\n" for text in overrides))
    if full_record["status"] in ("finished", "interrupted"):
        (folder / CHANGES).write_text(csv_text(CHANGE_COLUMNS, rows))
        steps = [{"step": step, "loss": loss, "seconds": 0.01, "lr/trainable": 0.1} for step, loss in enumerate(losses, 1)]
        (folder / STEPS).write_text(csv_text(["step", "loss", "seconds", "lr/trainable"], steps))
    return folder


def remove_rows(folder: Path, *names: str) -> None:
    """Remove the rows of the tensors whose names begin with one of `names` from a run's `changes.csv`."""
    path = folder / CHANGES
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(names)))


def write_sweep(sweep: Path, leaking: str = "none") -> list[Path]:
    """Write a sweep of three methods and two seeds, and a failed run; return the run folders.

    The method `leaking` leaks, which of `none` is no fault; `requires_grad` holds, and `zero_lr` holds but trains the other
    tensors to other values.
    """
    folders = []
    for seed in ("seed=0", "seed=1"):
        folders.append(write_run(sweep, "requires_grad", seed, losses=(2.0, 1.0 + int(seed[-1]))))
        folders.append(write_run(sweep, "zero_lr", seed, trained_digest="other", couplings=["clip"]))
        folders.append(write_run(sweep, leaking, seed, rows=LEAKED_ROWS, trained_digest="other"))
    folders.append(
        write_run(sweep, "detach", "seed=0", status="failed", reason="KeyError: 'x'", verdict=None, rows=(), losses=())
    )
    return folders

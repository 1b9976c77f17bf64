"""Run folders made by hand: what a run of this project leaves, without the run."""

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


def tensor(name: str, verdict: str, change: float = 0.0, cause: str = "", **more: Any) -> dict[str, Any]:
    """A row of `changes.csv`."""
    buffer = verdict in ("still", "drifted")
    frozen = verdict in ("held", "leaked", "returned")
    row = dict.fromkeys(CHANGE_COLUMNS, "") | {
        "name": name,
        "kind": "buffer" if buffer else "parameter",
        "module_type": "Linear",
    }
    row |= {"shape": "2", "numel": 2, "dtype": "float32", "frozen": frozen, "group": "frozen" if frozen else "trainable"}
    row |= {"lr": 0.1, "requires_grad": not frozen, "initial_l2": 1.0, "change_l2": change, "change_rel": change}
    return row | {"change_max": change, "moved": change != 0, "verdict": verdict, "cause": cause} | more


HELD = (tensor("body.weight", "held"), tensor("head.weight", "trained", 0.5), tensor("norm.mean", "drifted", 0.1))
LEAKED = (tensor("body.weight", "leaked", 0.25, "gradient"), *HELD[1:])


def make_run(
    sweep: Path,
    method: str = "zero_lr",
    /,
    *given: str,
    rows: Sequence[Mapping[str, Any]] = HELD,
    losses: Iterable[float] = (2.0, 1.5),
    name: str | None = None,
    **record: Any,
) -> Path:
    """Make the folder of a run below a sweep's folder; `record` overrides what `run.json` says by itself."""
    losses = list(losses)
    seed = next((text.removeprefix("seed=") for text in given if text.startswith("seed=")), "0")
    overrides = [f"method={method}", *given]
    hashed = f"{zlib.crc32(repr(overrides).encode()):08x}"
    folder = sweep / (name or f"{method}__backbone__s{seed}__{hashed}")
    (folder / ".hydra").mkdir(parents=True)
    class_name = "".join(part.title() for part in method.split("_"))
    full = {
        "status": "finished",
        "reason": "",
        "verdict": "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held",
        "counts": count_verdicts(rows),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "looks": [1, 2] if rows else [],
        "notes": [],
        "overrides": overrides,
        "config_hash": hashed,
        "method": {"_target_": f"runner.methods.{method}.{class_name}"},
        "buffers": "live",
        "setting": "-".join(given) or "one",
        "seed": int(seed),
        "threads": 1,
        "device": "cpu",
        "trained_digest": "same",
        "couplings": [],
        "cost": {},
        "versions": VERSIONS,
        "git": {"commit": "0" * 40, "dirty": False},
        **record,
    }
    (folder / RECORD).write_text(json.dumps(full))
    (folder / LOG).write_text("a log\n")
    (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\nmethod:\n  _target_: {full['method'].get('_target_')}\n")
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {json.dumps(text)}\n" for text in overrides))
    if full["status"] in ("finished", "interrupted"):
        (folder / CHANGES).write_text(csv_text(CHANGE_COLUMNS, rows))
        steps = [{"step": step, "loss": loss, "seconds": 0.01, "lr/trainable": 0.1} for step, loss in enumerate(losses, 1)]
        (folder / STEPS).write_text(csv_text(["step", "loss", "seconds", "lr/trainable"], steps))
    return folder


def make_sweep(sweep: Path) -> list[Path]:
    """Three methods over two seeds: one leaks, one holds, one holds and trains the rest otherwise; and one that failed."""
    made = []
    for seed in ("seed=0", "seed=1"):
        made.append(make_run(sweep, "requires_grad", seed, losses=(2.0, 1.0 + int(seed[-1]))))
        made.append(make_run(sweep, "zero_lr", seed, trained_digest="other", couplings=["clip"]))
        made.append(make_run(sweep, "none", seed, rows=LEAKED, trained_digest="other"))
    made.append(
        make_run(sweep, "detach", "seed=0", status="failed", reason="KeyError: 'x'", verdict=None, rows=(), losses=())
    )
    return made

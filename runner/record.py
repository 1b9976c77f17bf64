"""What `run.json` holds of a run that has measured nothing yet, and of one that died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.contract import Record
from runner.provenance import git, versions
from runner.verdict import counts

ONCE = ("resume", "plan")  # overrides that belong to one call, not to the run


def unmeasured(
    *,
    overrides: Sequence[str],
    config_hash: str,
    method: Mapping[str, Any],
    buffers: str,
    setting: str,
    seed: int,
    device: str,
) -> Record:
    """The record of a run that has measured nothing yet: what was asked, on what, and no outcome but `failed`."""
    return {
        "status": "failed",
        "reason": "",
        "verdict": None,
        "counts": counts(()),
        "loss_first": None,
        "loss_last": None,
        "looks": [],
        "notes": [],
        "overrides": lasting(overrides),
        "config_hash": config_hash,
        "method": dict(method),
        "buffers": buffers,
        "setting": setting,
        "seed": seed,
        "threads": None,
        "device": device,
        "trained_digest": None,
        "couplings": [],
        "cost": {},
        "versions": versions(),
        "git": git(),
    }


def lasting(overrides: Sequence[str]) -> list[str]:
    """The overrides without those that belong to one call."""
    return [text for text in overrides if text.split("=")[0].lstrip("+") not in ONCE]


def brief(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

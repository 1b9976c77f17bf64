"""What `run.json` holds of a run that has measured nothing yet, and of one that died."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runner.contract import Record
from runner.proof.verdict import counts

ONCE = ("resume", "plan")  # overrides that belong to one call, not to the run
_LIBRARIES = ("freeze-runner", "torch", "torchvision", "hydra-core", "omegaconf", "numpy")  # whose versions a record holds


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
        "overrides": persistent_overrides(overrides),
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


def persistent_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides without those that belong to one call."""
    return [text for text in overrides if text.split("=")[0].lstrip("+") not in ONCE]


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide a run's bits."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout that was not installed
            found[name] = ""
    return found


@lru_cache(maxsize=1)
def git() -> dict[str, Any]:
    """The commit of the current folder's repository, and whether it has uncommitted changes; None where there is none."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if changed is None or not commit else bool(changed)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

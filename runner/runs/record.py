"""Make the content of `run.json` for a run that has not trained yet."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runner.contract import Record, TrainingRecord
from runner.errors import place_in_user_code
from runner.proof.verdict import count_verdicts

# The advice for an error of CUDA that does not say what was wrong, nor in which call.
OUT_OF_RANGE = "; most likely a target is outside the classes, or an index outside an embedding: device=cpu says which"
COMMAND_KEYS = ("resume", "plan", "verbose", "report.every")  # overrides of one command, which are not recorded with a run
_LIBRARIES = ("freeze-runner", "torch", "torchvision", "hydra-core", "omegaconf", "numpy")  # whose versions are recorded


def new_record(
    *,
    overrides: Sequence[str],
    config_hash: str,
    method: Mapping[str, Any],
    buffers: str,
    setting: str,
    seed: int,
    device: str,
) -> Record:
    """Return the content of `run.json` for a run that has not trained yet: its config and versions, but no results.

    The status is `failed` until the run ends in another way. `overrides`: the command-line arguments. `config_hash`: equal
    for runs with the same config. `setting`: a hash that is equal for runs that differ only in the freezing method and in
    `freeze.buffers`. `method`, `buffers` (`freeze.buffers`), `seed` and `device`: the values in the config.
    """
    return {
        "status": "failed",
        "reason": "",
        **_nothing_trained(device),
        "notes": [],
        "overrides": persistent_overrides(overrides),
        "config_hash": config_hash,
        "method": dict(method),
        "buffers": buffers,
        "setting": setting,
        "seed": seed,
        "versions": library_versions(),
        "git": git_state(),
    }


def _nothing_trained(device: str) -> TrainingRecord:
    """Return the entries of `run.json` that a run has only if it trained, for one that did not."""
    return {
        "verdict": None,
        "counts": count_verdicts(()),
        "loss_first": None,
        "loss_last": None,
        "loss_not_finite_at": None,
        "loss_rose": False,
        "phases": [],
        "looks": [],
        "batches": None,
        "threads": None,
        "device": device,
        "trained_digest": None,
        "trained_in_phases": 0,
        "idle_in_phases": [],
        "nothing_frozen": "",
        "shared": {},
        "couplings": [],
        "evaluation": {},
        "cost": {},
    }


def persistent_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those of COMMAND_KEYS, such as `plan=...`, which are not part of the run."""
    return [text for text in overrides if text.split("=")[0].lstrip("+") not in COMMAND_KEYS]


def error_line(error: BaseException) -> str:
    """Return an exception as one line of text: its type and the first line of its message.

    If the user's own code raised it, its file and line come first: `mine.py, line 3: KeyError: 'x'`.
    """
    lines = str(error).strip().splitlines()
    text = ": ".join(filter(None, [place_in_user_code(error), type(error).__name__, *lines[:1]]))
    return text + (OUT_OF_RANGE if "device-side assert triggered" in text else "")


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Return {name: version} for Python and the libraries that affect results; "" for one that is not installed."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a checkout that is not installed
            versions[name] = ""
    return versions


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Return {"commit": hash, "dirty": bool} for the git repository of the current folder.

    `dirty` is True if tracked files have changes that are not committed. Both values are None outside a repository.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if changed is None or not commit else bool(changed)}


def _git(*arguments: str) -> str | None:
    """Run the git command with these arguments, and return what it prints; None if it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""What a run ran on: versions of the libraries, and the commit of the user's code."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LIBRARIES = ("freeze-runner", "torch", "torchvision", "hydra-core", "omegaconf", "numpy")


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

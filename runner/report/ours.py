"""Which files this project wrote, so that it never writes over another's."""

from __future__ import annotations

from pathlib import Path

from runner.folder import CHANGES

PAGE = "report.html"
GENERATOR = '<meta name="generator" content="freeze-runner '
# What stands within the first line of a table and the first bytes of the others, where this project wrote it.
OURS = {
    "comparison.csv": ",status,reason,verdict,",
    CHANGES: "run,name,",
    "failures.csv": "run,status,reason,log,overrides",
    PAGE: GENERATOR,
    "heatmap.svg": 'data-generator="freeze-runner"',
    "heatmap.png": "freeze-runner",
}


def ours(path: Path, kind: str) -> bool:
    """Whether a file of a kind may be written at a path: nothing is there, or it is empty, or this project wrote it."""
    try:
        with path.open("rb") as file:
            start = file.read(2000).decode("utf-8", "replace")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not start.strip() or OURS[kind] in (start.split("\n")[0] if kind.endswith(".csv") else start)

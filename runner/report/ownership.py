"""Which files this project wrote, so that it never writes over another's."""

from __future__ import annotations

from pathlib import Path

from runner.contract import (
    CHANGES,
    COLUMNS,
    COMPARISON,
    FAILURE_COLUMNS,
    FAILURES,
    HEATMAP_PNG,
    HEATMAP_SVG,
    OUTCOME_COLUMNS,
    PAGE,
)

GENERATOR = '<meta name="generator" content="freeze-runner '
# What stands within the first line of a table and the first bytes of the others, where this project wrote it.
SIGNATURES = {
    COMPARISON: ",".join(("", *OUTCOME_COLUMNS[:3], "")),
    CHANGES: ",".join(("run", COLUMNS[0], "")),
    FAILURES: ",".join(FAILURE_COLUMNS),
    PAGE: GENERATOR,
    HEATMAP_SVG: 'data-generator="freeze-runner"',
    HEATMAP_PNG: "freeze-runner",
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
    return not start.strip() or SIGNATURES[kind] in (start.split("\n")[0] if kind.endswith(".csv") else start)

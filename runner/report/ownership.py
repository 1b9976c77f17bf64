"""Tell whether a file was written by freeze-runner, so that the report never overwrites any other file."""

from __future__ import annotations

from pathlib import Path

from runner.contract import (
    CHANGE_COLUMNS,
    CHANGES,
    COMPARISON,
    FAILURE_COLUMNS,
    FAILURES,
    HEATMAP_PNG,
    HEATMAP_SVG,
    OUTCOME_COLUMNS,
    PAGE,
)

GENERATOR_TAG = '<meta name="generator" content="freeze-runner '
# A text that only our files contain: in the first line of a CSV file, in the first 2000 bytes of the others.
SIGNATURES = {
    COMPARISON: ",".join(("", *OUTCOME_COLUMNS[:3], "")),
    CHANGES: ",".join(("run", CHANGE_COLUMNS[0], "")),
    FAILURES: ",".join(FAILURE_COLUMNS),
    PAGE: GENERATOR_TAG,
    HEATMAP_SVG: 'data-generator="freeze-runner"',
    HEATMAP_PNG: "freeze-runner",
}


def may_overwrite(path: Path, name: str) -> bool:
    """Return whether `path` may be written: no file is there, or an empty one, or one that freeze-runner wrote.

    `name`: the standard name of the output file, such as `report.html`, which decides the mark of files of this project.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2000).decode("utf-8", "replace")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not start.strip() or SIGNATURES[name] in (start.split("\n")[0] if name.endswith(".csv") else start)

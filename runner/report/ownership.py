"""Tell whether a file was written by freeze-runner, so that the report never overwrites any other file."""

from __future__ import annotations

from pathlib import Path

from runner.contract import (
    CHANGE_COLUMNS,
    CHANGES,
    COMPARISON,
    COMPARISON_JSON,
    COMPARISON_SCHEMA,
    FAILURE_COLUMNS,
    FAILURES,
    HEATMAP_PNG,
    HEATMAP_SVG,
    OUTCOME_COLUMNS,
    PAGE,
)

GENERATOR_TAG = '<meta name="generator" content="freeze-runner '
# {standard file name: a text by which a file of freeze-runner is recognised}. It is in the first line of a CSV file, and in
# the first 2000 bytes of any other file.
SIGNATURES = {
    COMPARISON: ",".join(("", *OUTCOME_COLUMNS[:3], "")),
    COMPARISON_JSON: COMPARISON_SCHEMA,
    CHANGES: ",".join(("run", CHANGE_COLUMNS[0], "")),
    FAILURES: ",".join(FAILURE_COLUMNS),
    PAGE: GENERATOR_TAG,
    HEATMAP_SVG: 'data-generator="freeze-runner"',
    HEATMAP_PNG: "freeze-runner",
}


def may_overwrite(path: Path, name: str) -> bool:
    """Return whether `path` may be written: no file is there, the file is empty, or freeze-runner wrote it.

    `name`: the standard name of this kind of output file, such as `report.html`. A file counts as written by freeze-runner
    if it contains the text that SIGNATURES has for `name`. A file that cannot be read must not be overwritten.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2000).decode("utf-8", "replace")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not start.strip() or SIGNATURES[name] in (start.split("\n")[0] if name.endswith(".csv") else start)

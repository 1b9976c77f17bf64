"""What a run folder says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.folder import RECORD

Record = dict[str, Any]


def read_record(folder: Path) -> Record | None:
    """A run folder's `run.json`, or None where there is none that can be read (the run was killed, or has not begun)."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "status" in record else None


def run_folders(sweep: Path) -> list[Path]:
    """The run folders below a sweep's folder, by name."""
    return sorted(path for path in sweep.iterdir() if (path / RECORD).is_file() or (path / ".hydra").is_dir())

"""What a run folder says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_record(folder: Path) -> Record | None:
    """A run folder's `run.json`, or None where there is none (the run was killed, or has not begun)."""
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run_folders(sweep: Path) -> list[Path]:
    """The run folders below a sweep's folder, by name."""
    return sorted(path for path in sweep.iterdir() if (path / "run.json").is_file() or (path / ".hydra").is_dir())

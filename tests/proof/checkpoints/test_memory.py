"""Comparing and restoring checkpoints takes little memory, however large they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.checkpoints import MEASURE, write

MOST_MORE = 100e6  # bytes, than the import of torch takes
COMPARE = "import sys; from runner import diff; assert not diff(*sys.argv[1:], ['**']).leaks"
RESTORE = "import sys; from runner.restore import main; assert main([*sys.argv[1:], 'layers.3', '-o', 'c.safetensors']) == 0"
IMPORT = "from runner import diff"


def peak_of(code: str, *arguments: str) -> float:
    """Return the peak of the resident memory of a process that runs this code, in bytes."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-c", code, *arguments]
    return 1024 * float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@pytest.mark.long
@pytest.mark.parametrize("code", [COMPARE, RESTORE], ids=["diff", "restore"])
def test_the_memory_does_not_grow_with_the_checkpoint(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / name, gigabytes=1.0, is_sparse=True)
    assert peak_of(code, "a.safetensors", "b.safetensors") - peak_of(IMPORT) < MOST_MORE

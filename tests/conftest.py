"""What tests share: runs in a folder of their own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tensors as small as most tests' only wait for a second thread

from runner.__main__ import main
from runner.config.naming import register_resolvers

register_resolvers()  # as the doors do; some tests read files of `conf` without one

ROOT = Path(__file__).resolve().parent.parent

# A test whose library is absent is not collected, rather than skipped: what `.[test]` lacks, `.[all]` brings.
NEEDS = {
    "test_wheel.py": ("build", "hatchling"),
    "test_notebook.py": ("nbclient", "ipykernel"),
    "report/page/test_browser.py": ("selenium",),
}
collect_ignore = [name for name, libraries in NEEDS.items() if not all(map(find_spec, libraries))]
if not (which("chromium") and which("chromedriver")):
    collect_ignore.append("report/page/test_browser.py")


@pytest.fixture
def tmp_path(tmp_path):
    """A folder whose name every path and every argument has to survive."""
    folder = tmp_path / "it's a ünï dir"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def command(tmp_path):
    """Run `python -m runner ARGUMENTS...` in a process of its own; returns the finished process, output as text."""

    def run(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            check=False,
        )

    return run


@pytest.fixture
def door(monkeypatch, capsys):
    """Call the door in this process, which has torch already; returns the exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["runner", *arguments])
        code = main()
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    for name in ("mine", "buggy"):  # modules that tests write into their own folders
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def one_thread():
    """Tensors as small as most tests' only wait for a second thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

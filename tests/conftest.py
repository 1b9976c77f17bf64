"""Fixtures for all tests: each test runs in a folder of its own, and can call the command line."""

from __future__ import annotations

import csv
import gc
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: for small tensors a second thread costs time

from runner.__main__ import main
from runner.config.resolvers import register_resolvers

register_resolvers()  # as the entry points do, because some tests read the files of `conf` directly

ROOT = Path(__file__).resolve().parent.parent

# Test files that need libraries which only the extra `all` installs; without them a file is not collected.
REQUIRED_LIBRARIES = {
    "test_wheel.py": ("build", "hatchling"),
    "test_notebook.py": ("nbclient", "ipykernel"),
    "report/page/browser": ("selenium",),
    "integrations/test_lightning.py": ("lightning",),
    "integrations/test_transformers.py": ("transformers", "accelerate", "peft", "trl"),
    "integrations/test_accelerate.py": ("lightning", "accelerate"),
    "integrations/test_two_processes.py": ("lightning", "transformers", "accelerate"),
}
collect_ignore = [name for name, libraries in REQUIRED_LIBRARIES.items() if not all(map(find_spec, libraries))]
if not (which("chromium") and which("chromedriver")):
    collect_ignore.append("report/page/browser")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the libraries of `tests/integrations`, which takes seconds, if its long tests are not asked for."""
    name = f"{collection_path.parent.name}/{collection_path.name}"
    return (
        True
        if name.startswith("integrations/") and name in REQUIRED_LIBRARIES and config.option.markexpr == "not long"
        else None
    )


@pytest.fixture
def tmp_path(tmp_path):
    """Return a temporary folder whose name has a space, a quote and non-ASCII letters."""
    folder = tmp_path / "it's a ünï dir"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _run_in_tmp_path(tmp_path, monkeypatch):
    """Make the temporary folder of the test the current one; the width of a terminal is what a test says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest's workers have it


@pytest.fixture
def collect_garbage():
    """Return `gc.collect`, which in this test looks at the objects that were made since the test began, and so is quick."""
    gc.freeze()
    yield gc.collect
    gc.unfreeze()


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def cli_process(tmp_path):
    """Return a function that runs `python -m runner ARGUMENTS...` in a new process and returns the completed process."""

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
def cli(monkeypatch, capsys):
    """Return a function that runs the command line in this process and returns its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["runner", *arguments])
        code = main()
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    for name in ("mine", "buggy"):  # modules that tests write into their folders
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    """Let no test leave compiled code behind: after it, an audit would set no hooks in the tests that follow."""
    yield
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    if dynamo is not None and dynamo.FRAME_COUNTER:
        sys.modules["torch"]._dynamo.reset()

"""The wheel contains conf/ and works in an empty folder; a checkout uses the conf/ at its top."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from runner.config.schema import CONF
from tests.conftest import ROOT

pytestmark = pytest.mark.long


def test_a_checkout_uses_the_conf_at_its_top():
    assert CONF == ROOT / "conf"


def test_the_wheel_works_in_an_empty_folder_with_the_conf_that_it_contains(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    ZipFile(wheel).extractall(tmp_path / "unpacked")
    # With -S, Python reads no .pth files, so the checkout is not on the path if it is installed as editable.
    libraries = os.pathsep.join([str(tmp_path / "unpacked"), sysconfig.get_path("purelib")])
    empty = tmp_path / "empty"
    empty.mkdir()

    def run_wheel(*arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line of the unpacked wheel in the empty folder."""
        command = [sys.executable, "-S", "-m", "runner", *arguments]
        environment = {**os.environ, "PYTHONPATH": libraries}
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    conf = subprocess.run(
        [sys.executable, "-S", "-c", "import runner.config.schema as schema; print(schema.CONF)"],
        cwd=empty, env={**os.environ, "PYTHONPATH": libraries}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert Path(conf) == tmp_path / "unpacked" / "runner" / "conf"
    process = run_wheel("model=mlp", "method=zero_lr", "freeze=head", "batches=2")
    assert (process.returncode, process.stderr) == (0, "")
    assert "HELD  2 of 2" in process.stdout
    process = run_wheel("-m", "model=mlp", "method=glob(*)", "batches=1")
    assert (process.returncode, process.stderr) == (0, "")
    assert os.listdir(empty) == ["outputs"]

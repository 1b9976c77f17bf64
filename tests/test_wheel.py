"""The wheel carries conf/ and runs from an empty folder; a checkout uses its own top-level conf/."""

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


def test_a_checkout_uses_its_top_level_conf():
    assert CONF == ROOT / "conf"


def test_the_wheel_runs_from_an_empty_folder_with_the_conf_that_it_carries(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    ZipFile(wheel).extractall(tmp_path / "unpacked")
    # -S reads no .pth file, so that the checkout, installed as editable, is not on the path.
    libraries = os.pathsep.join([str(tmp_path / "unpacked"), sysconfig.get_path("purelib")])
    empty = tmp_path / "empty"
    empty.mkdir()

    def runner(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-m", "runner", *arguments]
        environment = {**os.environ, "PYTHONPATH": libraries}
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    where = subprocess.run(
        [sys.executable, "-S", "-c", "import runner.config.schema as schema; print(schema.CONF)"],
        cwd=empty, env={**os.environ, "PYTHONPATH": libraries}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert Path(where) == tmp_path / "unpacked" / "runner" / "conf"
    done = runner("model=mlp", "method=zero_lr", "freeze=head", "batches=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "HELD  2 of 2" in done.stdout
    done = runner("-m", "model=mlp", "method=glob(*)", "batches=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(empty) == ["outputs"]

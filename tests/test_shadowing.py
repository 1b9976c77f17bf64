"""Files in the current folder that have the name of a library, or of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.shadowing import LIBRARIES
from tests.conftest import ROOT

# What the console script `freeze-runner` does: the current folder is not searched for modules.
CONSOLE_SCRIPT = "import sys; sys.path.pop(0); from runner.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize("file", ["torch.py", "hydra.py", "yaml.py", "numpy/__init__.py"])
def test_a_file_that_hides_a_library_is_refused_in_one_line_before_it_is_imported(cli_process, file):
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("open('imported', 'w')")
    process = cli_process("batches=0")
    name = file.split("/")[0].removesuffix(".py")
    message = f"{file} in the current folder hides the library {name}; rename it, or start with freeze-runner"
    assert (process.returncode, process.stdout, process.stderr) == (2, "", f"freeze-runner: {message}\n")
    assert not Path("imported").exists()


def test_a_folder_without_an_init_file_hides_nothing(cli_process):
    Path("torch").mkdir()
    Path("runner").mkdir()
    assert "batches is 0" in cli_process("batches=0").stderr


@pytest.mark.long
def test_the_console_script_works_beside_files_that_have_the_names_of_this_package_and_of_libraries():
    for name in ("runner", "torch", "hydra"):
        Path(f"{name}.py").write_text("raise SystemExit('the wrong file')")
    command = [sys.executable, "-c", CONSOLE_SCRIPT, "model=mlp", "batches=1", "hydra.run.dir=here"]
    process = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=120
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.long
def test_every_library_that_a_run_imports_is_checked_for():
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]; from runner.__main__ import main; assert main() == 0;"
        "print('\\n'.join(f'{name} {getattr(module, \"__file__\", None)}' for name, module in sys.modules.items()))"
    )
    arguments = ["batches=1", "model.input=[3,32,32]", "cost=time", "optimizer=adam", "hydra.run.dir=here"]
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    loaded = dict(line.split(" ", 1) for line in process.stdout.splitlines() if line.count(" ") == 1)
    installed = {name for name, file in loaded.items() if "site-packages" in file and "." not in name}
    assert "torch" in installed
    assert {name for name in installed if not name.startswith("_")} <= {*LIBRARIES, "hydra_plugins"}

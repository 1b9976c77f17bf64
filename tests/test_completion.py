"""Bash completes the arguments of the console script `freeze-runner`, after the line that the docs show."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from tests.conftest import ROOT

(INSTALL,) = re.findall(r'^(eval "\$\(freeze-runner -sc install=bash\)")', (ROOT / "docs" / "config.md").read_text(), re.M)
SCRIPT = Path(sys.executable).parent / "freeze-runner"
NEEDED = which("bash") and SCRIPT.is_file()
pytestmark = pytest.mark.skipif(not NEEDED, reason="needs bash, and the console script that an installation makes")


@pytest.fixture
def environment():
    """Return the environment of a shell in which `freeze-runner` is on the path, as in an activated environment."""
    path = os.pathsep.join([str(SCRIPT.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PS1": "$ ", "TERM": "dumb"}


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("freeze-runner method=ze", ["method=zero_grad", "method=zero_lr"]),
        ("freeze-runner -m method=zero_lr freeze=ba", ["freeze=backbone", "freeze=batchnorm"]),
        ("freeze-runner 'freeze.patterns=[\"layer1\"]' tim", ["timeout="]),
        ("freeze-runner 'tim", []),
        *(
            pytest.param(*more, marks=pytest.mark.long)
            for more in (
                ("freeze-runner data=image_folder data.ro", ["data.root="]),
                ("freeze-runner tim", ["timeout="]),
                ("freeze-runner plan=true sweep.m", ["sweep.max_runs="]),
                ("freeze-runner freeze.patterns=[a,b tim", ["timeout="]),  # an argument that is refused in the end
                ("freeze-runner seed=1,2 -m tim", []),  # an option stands behind an argument
            )
        ),
    ],
)
def test_bash_is_given_the_choices_and_keys_that_begin_as_the_typed_word(typed, completions, environment):
    code = f'{INSTALL}; COMP_CWORD={len(typed.split()) - 1}; hydra_bash_completion; printf "%s\\n" "${{COMPREPLY[@]}}"'
    variables = {**environment, "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    done = subprocess.run(["bash", "-c", code], env=variables, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.split(), done.stderr) == (completions, "")


def test_a_typed_method_is_completed_in_a_real_terminal(environment):
    terminal, other = os.openpty()
    shell = subprocess.Popen(["bash", "--norc", "-i"], env=environment, stdin=other, stdout=other, stderr=other)
    os.close(other)
    seen = ""

    def read_until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([terminal], [], [], 60)[0], f"{text!r} is not in {seen!r}"
            seen += os.read(terminal, 1024).decode().replace("\a", "")  # the bell: there are several

    try:
        os.write(terminal, f"{INSTALL}; echo 'in''stalled'\n".encode())
        read_until("installed")
        os.write(terminal, b"freeze-runner method=ze\t")
        read_until("freeze-runner method=zero_")
        os.write(terminal, b"l\t")
        read_until("freeze-runner method=zero_lr")
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)

"""`docs/ci.md` and `examples/ci/` agree with action.yml and the program: YAML, inputs, arguments, and the job of GitLab."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml

from runner.config.compose import hydra_initialized
from tests.conftest import ROOT

INPUTS = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
PAGE = (ROOT / "docs" / "ci.md").read_text()
FILES = {path.name: path.read_text() for path in sorted((ROOT / "examples" / "ci").iterdir())}
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
PARSED = [yaml.safe_load(text) for text in [*BLOCKS, *FILES.values()]]


def steps_of(node: Any) -> Iterator[dict[str, Any]]:
    """Yield each step of GitHub's in a parsed YAML text."""
    if isinstance(node, dict):
        yield from ([node] if "uses" in node or "run" in node else [])
        node = list(node.values())
    for inner in node if isinstance(node, list) else []:
        yield from steps_of(inner)


STEPS = [step for node in PARSED for step in steps_of(node)]
OURS = [step for step in STEPS if step.get("uses") == "OWNER/freeze-runner@COMMIT"]
SCRIPTS = [node["freeze"]["script"] for node in PARSED if isinstance(node, dict) and "freeze" in node]


def test_the_page_shows_each_example_in_full():
    assert FILES.keys() == {"freeze.yml", "gitlab-ci.yml"}
    assert all(text in BLOCKS for text in FILES.values())


def test_each_input_of_an_example_is_one_of_the_action_and_no_script_has_an_expression_in_it():
    assert len(OURS) == 4
    for step in OURS:
        assert step["with"].keys() <= INPUTS.keys()
        assert ("arguments" in step["with"]) != ("before" in step["with"])
    assert not [step["run"] for step in STEPS if "${{" in step.get("run", "")]


def test_the_table_of_the_page_lists_each_input_with_its_default():
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `")]
    listed = {
        name: "".join(re.findall("`(.*?)`", default)) for names, default in rows for name in re.findall("`(.*?)`", names)
    }
    assert listed == {name: given["default"] for name, given in INPUTS.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        *([line.strip() for line in step["with"]["arguments"].splitlines()] for step in OURS if "arguments" in step["with"]),
        *(shlex.split(line)[3:] for script in SCRIPTS for line in script if line.startswith("python -m runner ")),
    ],
    ids=" ".join,
)
def test_the_arguments_of_each_example_can_be_composed(arguments):
    with hydra_initialized():
        assert hydra.compose("config", arguments)


@pytest.mark.long
@pytest.mark.parametrize("method", ["requires_grad", "none"])
def test_the_job_for_gitlab_passes_the_exit_code_on_and_leaves_the_page_and_the_summary(method, tmp_path):
    job = yaml.safe_load(FILES["gitlab-ci.yml"])["freeze"]
    lines = [
        line.replace("method=requires_grad", f"method={method}") for line in job["script"] if not line.startswith("pip ")
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    codes = [
        subprocess.run(["bash", "-ec", "\n".join(each)], env=environment, cwd=tmp_path, check=False).returncode
        for each in (lines, job["after_script"])
    ]
    assert codes == [3 if method == "none" else 0, 0]
    assert job["artifacts"]["paths"] == ["freeze-report/"]
    summary = Path("freeze-report/summary.md").read_text()
    assert summary.startswith("## Leaked" if method == "none" else "## Held")
    assert Path("freeze-report/report.html").is_file()

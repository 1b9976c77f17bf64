"""The GitHub Action: its steps run here in bash, with the environment that action.yml gives them; no input is code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, read_table

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step.get("name", "Python"): step for step in ACTION["runs"]["steps"]}
SCRIPT = (ROOT / ".ci" / "action").read_text()
EXPRESSION = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}")
LEAKS = "model=mlp\nmethod=zero_lr\nscheduler=one_cycle\nfreeze=head\nbatches=2"


class Done:
    """How a step ended: its exit code, what it printed, the summary of the job and the outputs of the step."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.summary = Path("summary").read_text() if Path("summary").exists() else ""
        lines = Path("outputs").read_text().splitlines() if Path("outputs").exists() else []
        self.outputs = dict(line.split("=", 1) for line in lines)
        self.folder = Path(self.outputs.get("folder", ""))


@pytest.fixture
def step(tmp_path) -> Callable[..., Done]:
    """Run a step of the action as GitHub does: its `run` in bash, its `env` with these inputs or their defaults."""
    (tmp_path / "temp").mkdir()

    def run(name: str, environment: dict[str, str] | None = None, /, **inputs: str) -> Done:
        given = {key: value.get("default", "") for key, value in ACTION["inputs"].items()} | inputs
        env = {key: EXPRESSION.sub(lambda found: given[found[1]], value) for key, value in STEPS[name]["env"].items()}
        places = {"GITHUB_ACTION_PATH": ROOT, "RUNNER_TEMP": tmp_path / "temp", "PYTHONPATH": ROOT}
        places |= {"GITHUB_STEP_SUMMARY": tmp_path / "summary", "GITHUB_OUTPUT": tmp_path / "outputs"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        everything = {**os.environ, "PATH": path, **{key: str(place) for key, place in places.items()}, **env}
        for place in ("summary", "outputs"):
            Path(place).unlink(missing_ok=True)
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]  # as `shell: bash` does
        done = subprocess.run(
            command, cwd=tmp_path, env=everything | (environment or {}), capture_output=True, text=True, check=False
        )
        return Done(done)

    return run


def test_no_input_is_put_into_a_script_and_each_reaches_a_step():
    assert not [name for name, step in STEPS.items() if "${{" in step.get("run", "")]
    used = {name for step in STEPS.values() for name in EXPRESSION.findall(str(step.get("env")) + str(step.get("with")))}
    used |= set(EXPRESSION.findall(str(STEPS["Check"]["working-directory"])))
    assert used == set(ACTION["inputs"])


def test_the_script_reads_what_the_steps_give_it_and_evaluates_nothing():
    given = {key for step in STEPS.values() for key in step.get("env", {})}
    assert set(re.findall(r"FREEZE_\w+", SCRIPT)) == {*given, "FREEZE_FOLDER"}
    assert not re.search(r"\beval\b|\bsh -c\b|\bsource\b", SCRIPT.split("\nset -euo")[1])


def test_every_output_of_the_action_is_written(step):
    done = step("Check", arguments="freeze=nosuch")
    written = {
        re.fullmatch(r"\$\{\{ steps\.check\.outputs\.(.*) \}\}", each["value"])[1] for each in ACTION["outputs"].values()
    }
    assert written == set(done.outputs) == set(ACTION["outputs"])


def test_the_upload_does_not_depend_on_success_and_leaves_weights_out():
    upload = STEPS["Upload"]
    assert upload["if"] == "${{ !cancelled() && steps.check.outputs.folder != '' }}"
    assert upload["with"]["path"].splitlines() == [
        "${{ steps.check.outputs.folder }}",
        "!${{ steps.check.outputs.folder }}/**/*.safetensors",
    ]


def test_a_run_that_held_is_0_with_a_summary_and_a_page(step):
    done = step("Check", arguments="model=mlp\n\n  freeze=head\r\nbatches=2")
    assert (done.code, done.err) == (0, "")
    assert "HELD  2 of 2 frozen tensors kept every bit" in done.out
    assert done.summary.startswith("## Held\n\n2 of 2 frozen tensors kept every bit.")
    assert "`model=mlp freeze=head batches=2 strict=true`" in done.summary
    assert done.outputs["exit-code"] == "0"
    assert Path(done.outputs["summary"]).read_text() == done.summary
    assert {path.name for path in done.folder.iterdir()} >= {"report.html", "run.json", "changes.csv", "summary.md"}
    assert done.folder == Path("temp").absolute() / "freeze-report"


def test_a_run_that_leaked_is_3_and_the_summary_and_the_page_are_there_all_the_same(step):
    done = step("Check", arguments=f"{LEAKS}\nstrict=false\nhydra.run.dir=elsewhere")  # the inputs of the action win
    assert done.code == 3
    assert done.summary.startswith("## Leaked\n\n2 of 2 frozen tensors changed.")
    assert "| scheduler | 2 tensors leaked in 1 run |" in done.summary
    assert done.summary.endswith(f"### Exit code 3\n\n~~~text\n{done.err.splitlines()[-1]}\n~~~\n")
    assert done.outputs["exit-code"] == "3"
    assert (done.folder / "report.html").is_file()


@pytest.mark.long
def test_without_strict_a_leak_is_in_the_summary_and_0(step):
    done = step("Check", arguments=LEAKS, strict="false")
    assert (done.code, done.outputs["exit-code"]) == (0, "0")
    assert done.summary.startswith("## Leaked")


@pytest.mark.long
def test_a_sweep_has_one_page_and_the_answer_and_a_leak_in_it_is_3(step):
    done = step(
        "Check", arguments="-m\nmodel=mlp\nmethod=requires_grad,zero_lr\nscheduler=one_cycle\nfreeze=head\nbatches=2"
    )
    assert done.code == 3
    assert done.summary.startswith("## Use requires_grad\n")
    assert "| zero_lr | ✗ leaked | 1 |" in done.summary
    assert len(read_table(done.folder / "comparison.csv")) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give arguments, for a run, or before and after, for two checkpoints"),
        ({"arguments": " \n \r\n"}, "give arguments, for a run, or before and after, for two checkpoints"),
        ({"before": "a"}, "give both before and after, a path each"),
        ({"before": " ", "after": "b", "patterns": "c"}, "give both before and after, a path each"),
        ({"before": "a\nb", "after": "c"}, "give both before and after, a path each"),
        ({"before": "a", "after": "b", "arguments": "freeze=fc"}, "give arguments, or before and after, not both"),
        ({"arguments": "freeze=fc", "patterns": "fc"}, "patterns, keep and key need before and after"),
        ({"arguments": "freeze=fc", "strict": "yes"}, "strict must be true or false, not yes"),
        ({"arguments": "freeze=fc", "strict": "True"}, "strict must be true or false, not True"),
        ({"before": "--help", "after": "b"}, "before: --help begins with a dash"),
        ({"before": "a", "after": "b", "patterns": "fc\n-h"}, "patterns: -h begins with a dash"),
        ({"before": "a", "after": "b", "keep": "--markdown"}, "keep: --markdown begins with a dash"),
        ({"before": "a", "after": "b", "key": "-o"}, "key: -o begins with a dash"),
        ({"arguments": "freeze=nosuch"}, "freeze=nosuch: no such choice"),
        ({"arguments": "nosuch=1"}, "nosuch"),
        ({"arguments": "--help"}, "the arguments ask for no run, so nothing was checked"),
        pytest.param(
            {"arguments": "plan=true\nmodel=mlp\nbatches=2"},
            "the arguments ask for no run, so nothing was checked",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_is_refused_is_2_never_0_and_the_summary_says_why(step, inputs, message):
    done = step("Check", **inputs)
    assert (done.code, done.outputs["exit-code"]) == (2, "2")
    (line,) = (line for line in done.err.splitlines() if line.startswith("freeze-runner: "))
    assert message in line
    assert done.summary == f"\n### Exit code 2\n\n~~~text\n{line}\n~~~\n"
    assert (done.folder / "summary.md").read_text() == done.summary


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "a\nfolder=b", "$(touch pwned)", ".git"])
def test_a_name_that_is_no_plain_file_name_is_refused_and_nothing_is_uploaded(step, name):
    done = step("Check", arguments="model=mlp", name=name)
    assert (done.code, done.outputs) == (2, {"exit-code": "2", "folder": "", "summary": ""})
    assert not list(Path("temp").iterdir())
    assert not Path("pwned").exists()


@pytest.mark.long
def test_a_second_use_with_the_same_name_is_refused_so_that_no_old_run_is_reported(step):
    assert step("Check", arguments="model=mlp\nfreeze=head\nbatches=2").code == 0
    done = step("Check", arguments="model=mlp\nfreeze=head\nbatches=2")
    assert done.code == 2
    assert "freeze-report is the name of an earlier use of the action in this job" in done.err
    assert step("Check", arguments="model=mlp\nfreeze=head\nbatches=2", name="other").code == 0


def test_no_input_is_run_as_shell_code(step):
    text = "$(touch pwned) `touch pwned` ; touch pwned ' ; touch pwned ; ' \" ; touch pwned ; \""
    runs = {"arguments": f"model=mlp\n{text}"}, {"arguments": "a=1", "strict": text}, {"arguments": "a=1", "name": text}
    diffs = [{"before": text, "after": text, key: text} for key in ("patterns", "keep", "key")]
    for number, inputs in enumerate([*runs, *diffs]):
        assert step("Check", **{"name": f"use{number}", **inputs}).code in (1, 2)
    assert step("Install", {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}, requirements=text).code != 0
    assert step("Install", {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}, extras=text).code != 0
    assert not list(Path().rglob("*pwned*"))


@pytest.mark.long
def test_an_argument_is_a_line_whatever_spaces_it_has(step):
    patterns = "freeze.patterns=[body, 'there.weight']"
    done = step("Check", arguments=f"model=mlp\n{patterns}\nbatches=2")
    assert done.code == 0
    assert patterns in (done.folder / "run.json").read_text().replace('\\"', '"')


@pytest.mark.long
def test_a_package_of_the_repository_named_runner_hides_nothing(step):
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 does not know PYTHONSAFEPATH")
    Path("runner.py").write_text("raise SystemExit(0)")
    assert step("Check", arguments=LEAKS).code == 3


@pytest.mark.long
def test_a_module_of_the_repository_can_be_the_model(step):
    Path("mine.py").write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))\n")
    given = "model=custom\nmodel.build._target_=mine.net\nmodel.input=[8]\nmodel.classes=4\nfreeze.patterns=['0']\nbatches=2"
    assert step("Check", arguments=given).code == 0


@pytest.mark.long
def test_the_workflow_of_the_examples_checks_a_run_that_holds(step):
    workflow = yaml.safe_load((ROOT / "examples" / "ci" / "freeze.yml").read_text())
    done = step("Check", **workflow["jobs"]["freeze"]["steps"][1]["with"])
    assert done.code == 0, done.err
    assert done.summary.startswith("## Held\n")


@pytest.mark.skipif(not find_spec("runner.diff"), reason="runner.diff is not there")
@pytest.mark.parametrize(
    ("inputs", "code", "heading"),
    [
        ({"patterns": "head"}, 0, "held"),
        ({"patterns": "body\nhead"}, 3, "leaked"),
        ({"patterns": "**", "keep": "body"}, 0, "held"),
        ({"patterns": "body", "strict": "false"}, 0, "leaked"),
        ({}, 2, "exit code 2"),
        ({"patterns": "nosuch"}, 2, "exit code 2"),
    ],
)
def test_two_checkpoints_are_compared_and_a_leak_is_3(step, inputs, code, heading):
    import torch
    from safetensors.torch import save_file

    weights = {"body.weight": torch.zeros(3), "head.weight": torch.ones(2)}
    save_file(weights, "before.safetensors")
    save_file(weights | {"body.weight": torch.tensor([0.0, 0.0, 1e-9])}, "after.safetensors")
    done = step("Check", before="before.safetensors", after="after.safetensors", **inputs)
    assert (done.code, done.outputs["exit-code"]) == (code, str(code))
    assert heading in done.summary.lower()
    assert (done.folder / "report.html").is_file() == (code != 2)


@pytest.mark.long
def test_install_installs_the_checkout_with_what_the_requirements_say(step, tmp_path):
    pytest.importorskip("hatchling")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "mine"\nversion = "3.2.1"\n[tool.hatch.build.targets.wheel]\nbypass-selection = true\n'
    )
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(tmp_path / "there")}
    done = step("Install", offline, requirements="./mine\n", extras="data,save")
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert {"runner", "hydra_plugins", "mine-3.2.1.dist-info"} <= names
    assert (tmp_path / "there" / "runner" / "conf" / "config.yaml").is_file()

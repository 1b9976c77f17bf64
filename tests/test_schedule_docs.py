"""`docs/schedules.md` agrees with the code, and its examples work as they are written there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import cross_entropy

from runner import audit, run
from runner.config.schema import CONF
from runner.proof.audit_report import UnsoundError
from tests.conftest import ROOT, read_table
from tests.test_docs import first_cells, section

PAGE = (ROOT / "docs" / "schedules.md").read_text()
SMALL = ("model.input=[3,8,8]", "cost=off", "evaluate=false", "batches=4")


def example(language: str, first_line: str) -> str:
    """Return the code of the example that begins with a comment."""
    (code,) = re.findall(rf"```{language}\n# {re.escape(first_line)}\n(.*?)```", PAGE, re.S)
    return code


def command(text: str) -> list[str]:
    """Return the arguments of the command of the page that has this text in it."""
    lines = [line for block in re.findall(r"```\w+\n(python .*?)```", PAGE, re.S) for line in [block.replace("\\\n", " ")]]
    (found,) = [line for line in lines if text in line]
    return shlex.split(found.split("python -m runner ")[1])


def defaults() -> dict[str, dict[str, Any]]:
    """Return {name of a file of `conf/schedule`: {key: default}}."""
    paths = (CONF / "schedule").glob("*.yaml")
    return {
        path.stem: {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "_target_"}
        for path in paths
    }


def test_the_page_lists_every_schedule():
    listed = first_cells(section("schedules.md", "Which schedule"))
    assert sorted(listed) == sorted(["schedule=", *defaults()])


def test_the_page_lists_every_key_but_that_of_after():
    listed = set(first_cells(section("schedules.md", "Keys")))
    assert listed == {f"schedule.{key}" for keys in defaults().values() for key in keys} - {"schedule.step"}


def test_the_page_says_which_schedules_have_a_key_and_the_numbers_that_are_defaults():
    numbers = 0
    for keys, text, files in re.findall(r"^\| (`schedule.*?) \| (.*) \| (.*) \|$", section("schedules.md", "Keys"), re.M):
        for key in re.findall(r"`schedule\.(\w+)`", keys):
            having = {file: values[key] for file, values in defaults().items() if key in values}
            assert files.startswith("all ") or set(re.findall(r"`(\w+)`", files)) == set(having), key
            for value in having.values():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    assert f"({value})" in text, key
                    numbers += 1
    assert numbers == 5


@pytest.mark.long
@pytest.mark.parametrize(
    "text", ["plan=true experiment=digits data.epochs=2", "python -m runner experiment=digits data.epochs"]
)
def test_what_a_command_prints_stands_on_the_page(text, cli):
    blocks = re.findall(r"```(?:bash|text)\n(.*?)```", PAGE, re.S)
    (number,) = [n for n, block in enumerate(blocks) if text in block and "epochs=2 schedule=gradual\n" in block]
    shown = [line for line in blocks[number + 1].splitlines() if line]
    code, out, _ = cli(*shlex.split(blocks[number].split("python -m runner ")[1]))
    assert code == 0
    assert [line for line in out.splitlines() if line in shown] == shown


@pytest.mark.parametrize("text", ["schedule.phases=[{at", "--config-dir mine"])
def test_the_list_of_a_command_and_that_of_a_file_freeze_and_thaw_at_the_steps_that_they_say(text, cli):
    path = Path("mine", "schedule", "top_then_all.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(example("yaml", path.as_posix()))
    code, out, err = cli(*command(text), *SMALL, "plan=true")
    assert code == 0, err
    frozen = dict(re.findall(r"^(bn1|layer3|layer4) .* (?:True|False) +(.*)$", out, re.M))
    assert frozen == {"bn1": "steps 1-8 and 13-16", "layer3": "steps 1-8", "layer4": "steps 1-4"}


def test_a_schedule_of_ones_own_freezes_one_tensor_after_the_other():
    Path("from_the_input.py").write_text(example("python", "from_the_input.py"))
    result = run(*command("from_the_input"), "optimizer=adam")
    assert (result.status, result.verdict) == ("finished", "held")
    phases = [(phase["first_step"], phase["frozen"]) for phase in result.record["phases"]]
    assert phases == [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4), (11, 5), (13, 6), (15, 7)]


def test_a_schedule_of_ones_own_decides_by_the_loss():
    Path("until_the_loss.py").write_text(example("python", "until_the_loss.py"))
    result = run(*command("until_the_loss"), "cost=off")
    first, second = result.record["phases"]
    assert (first["blocks"][0]["frozen"], second["blocks"][0]["frozen"]) == (True, False)
    assert (result.verdict, first["last_step"] % 5) == ("held", 0)
    losses = [float(row["loss"]) for row in read_table(result.folder / "steps.csv")]
    windows = [sum(losses[end - 5 : end]) / 5 for end in range(5, second["first_step"], 5)]
    assert [mean < 2.2 for mean in windows] == [*[False] * (len(windows) - 1), True]


def executed(code: str) -> dict:
    """Run the example of a loop, or a variant of it, and return its names."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    batches = [(torch.randn(8, 8), torch.randint(4, (8,))) for _ in range(9)]
    names = {"model": model, "batches": batches, "torch": torch, "audit": audit, "cross_entropy": cross_entropy}
    exec(code, names)
    return names


def verdicts_in(report) -> list[tuple[int, int, list[str]]]:
    """Return (first step, last step, verdicts of the three weights) of each phase."""
    return [
        (phase.first_step, phase.last_step, [row["verdict"] for row in phase.rows if row["name"].endswith("weight")])
        for phase in report.phases
    ]


def test_the_loop_that_thaws_layer_by_layer_has_three_phases(capsys):
    report = executed(example("python", "thaw layer by layer"))["report"]
    assert verdicts_in(report) == [
        (1, 3, ["held", "held", "trained"]),
        (4, 6, ["held", "trained", "trained"]),
        (7, 9, ["trained", "trained", "trained"]),
    ]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_thawed_layer_that_the_optimizer_does_not_have_is_idle_and_refused():
    code = example("python", "thaw layer by layer")
    (given,) = re.findall(r"AdamW\((.*?), lr", code)
    code = code.replace(given, "[p for p in model.parameters() if p.requires_grad]")
    with pytest.raises(UnsoundError, match="unfrozen in mid-run, and unchanged since: "):
        executed(code)
    report = executed(code.replace("report.raise_if_unsound()", ""))["report"]
    assert [verdicts for *_, verdicts in verdicts_in(report)] == [
        ["held", "held", "trained"],
        ["held", "idle", "trained"],
        ["idle", "idle", "trained"],
    ]
    assert {row["cause"] for row in report.phases[-1].rows if row["verdict"] == "idle"} == {"not_in_optimizer"}

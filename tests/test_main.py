"""The command line: its output, files and exit codes, and one short message for each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runner
from runner.contract import CHANGE_COLUMNS
from tests.conftest import ROOT, read_table

QUICK = ("model=mlp", "batches=3")

# Overrides, and a part of the message with which they are refused before the model is built.
REFUSED_WITHOUT_THE_MODEL = {
    ("model=resnet19",): "did you mean resnet18",
    ("nosuchgroup=1",): "nosuchgroup: no such key",
    ("batchs=3",): "did you mean batches",
    ("+typo=1",): "typo: no such key",
    ("+freeze.typo=1",): "freeze.typo: no such key",
    ("freeze.pattrens=[fc]",): "did you mean freeze.patterns",
    ("batches=abc",): "'abc'",
    ("batches=0",): "batches is 0",
    ("batches=1.5",): "batches",
    ("data.batch_size=0",): "data.batch_size is 0",
    ("clip=-1",): "clip is -1",
    ("threads=none",): "threads is 'none'",
    ("device=tpu",): "expected one of",
    ("freeze.patterns=fc",): "expected a list",
    ("freeze.patterns=['']",): "is not a pattern",
    ("freeze.patterns=[a..b]",): "empty part",
    ("freeze.patterns=['re:layer[']",): "is not a regular expression",
    (r"freeze.patterns=[re:layer[12]\..*bias]",): "quote the pattern",
    ("freeze.patterns=[fc]", "freeze.keep=[fc]"): "remove it from one of them",
    ("groups.lr=[{pattern: fc, lr: -1}]",): "must be 0 or more",
    ("model=custom",): "model.build._target_ is missing",
    ("data=image_folder",): "data.root is missing",
    ("optimizer=custom",): "optimizer._target_ is missing",
    ("method=zero_lr,none",): "add -m",
    ("-m", "method=zero_lr,nosuch"): "no such choice",
    ("-m", "batches=1,0"): "batches is 0",
    ("hydra.run.dir=file/below",): "cannot write",
    ("freeze=[fc,conv1]",): "freeze.patterns=[A,B]",
    ("foo",): "'foo' is not an argument",
    ("-m", "hydra.sweep.subdir=x"): "hydra.sweep.dir",
    ("timeout=0",): "timeout is 0",
    ("on_error=retry",): "expected one of [continue, stop]",
    ("-m", "on_error=retry"): "expected one of [continue, stop]",
    ("resume=first",): "expected one of [last]",
    ("resume=last",): "add -m",
    ("-m", "resume=last"): "finds no sweep below outputs/sweeps",
    ("-m", "resume=last", "hydra.sweep.dir=x"): "give one of them",
    ("launch=kubernetes",): "launch=kubernetes: no such choice",
    ("+optimizer.lrr=0.1",): "takes no lrr; did you mean lr",
    ("optimizer._target_=torch.optim.SGDD",): "did you mean SGD",
}

# Overrides, and a part of the message with which they are refused after the model is built.
REFUSED_WITH_THE_MODEL = {
    ("freeze=fc",): "'fc' matches no parameter or module of the model",
    ("freeze.patterns=[Head]",): "did you mean head",
    ("freeze.patterns=[head]", "freeze.keep=[body]"): "exempts nothing",
    ("freeze.patterns=[head.bias,body]", "freeze.keep=[head,body.weight]"): "exempts all of it",
    ("groups.lr=[{pattern: nosuch, lr: 1}]",): "groups.lr: 'nosuch' matches no parameter",
    ("optimizer.momentum=-1",): "Invalid momentum value",
    ("optimizer._target_=nosuch.Sgd",): "no module 'nosuch'",
    ("data.batch_size=1",): "BatchNorm cannot normalise",
    ("data=digits", "model.classes=4"): "give model.classes=10",
}


def run_folders() -> list[Path]:
    """Return the folders of the runs below `outputs`."""
    return sorted(path.parent for path in Path("outputs").rglob(".hydra"))


@pytest.mark.parametrize(
    ("arguments", "message"), REFUSED_WITHOUT_THE_MODEL.items(), ids=map(" ".join, REFUSED_WITHOUT_THE_MODEL)
)
def test_a_mistake_in_the_config_is_one_line_with_code_2_and_creates_no_folder(cli, arguments, message):
    Path("file").write_text("")
    code, out, err = cli(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert not Path("outputs").exists()


def test_the_process_of_a_refused_config_prints_one_line_and_exits_with_code_2(cli_process):
    process = cli_process("batchs=3")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "freeze-runner: batchs: no such key; did you mean batches?\n"


def test_refusing_a_config_does_not_import_torch():
    code = "import sys, runner.__main__ as cli; sys.argv = ['', 'batches=0']; print(cli.main(), 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert process.stdout == "2 False\n"


def test_a_device_that_is_not_there_is_refused_before_a_folder_is_created(cli):
    import torch

    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    missing = [name for name, there in is_there.items() if not there]
    assert missing  # no machine has both
    for name in missing:
        for arguments in ((*QUICK, f"device={name}"), ("-m", *QUICK, f"device={name}")):
            code, out, err = cli(*arguments)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"device={name} is not available here; give device=cpu or device=auto" in err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(("arguments", "message"), REFUSED_WITH_THE_MODEL.items(), ids=map(" ".join, REFUSED_WITH_THE_MODEL))
def test_a_mistake_found_with_the_model_is_one_line_with_code_2_and_the_run_is_recorded_as_failed(cli, arguments, message):
    code, _, err = cli(*QUICK, *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    (folder,) = run_folders()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed"
    assert message in record["reason"]
    assert sorted(os.listdir(folder)) == [".hydra", "run.json", "runner.log"]


def test_a_run_prints_its_verdict_and_writes_the_files_of_the_contract(cli_process):
    process = cli_process("method=zero_lr", "freeze=head", *QUICK)
    assert (process.returncode, process.stderr) == (0, "")
    assert "\nHELD  2 of 2 frozen tensors kept every bit\n" in process.stdout
    assert "3 BatchNorm buffers changed (normal; `freeze.buffers=frozen` stops it)\n" in process.stdout
    assert "\x1b" not in process.stdout  # neither colours nor a progress bar if the output is a pipe
    (folder,) = run_folders()
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d{6}-[0-9a-f]{8}", str(folder))
    assert sorted(os.listdir(folder)) == [".hydra", "changes.csv", "report.html", "run.json", "runner.log", "steps.csv"]
    rows = read_table(folder / "changes.csv")
    assert tuple(rows[0]) == CHANGE_COLUMNS
    assert [row["name"] for row in rows if row["verdict"] == "held"] == ["head.weight", "head.bias"]
    steps = read_table(folder / "steps.csv")
    assert list(steps[0]) == ["step", "loss", "seconds", "lr/frozen", "lr/trainable"]
    assert [(row["step"], row["lr/frozen"], row["lr/trainable"]) for row in steps] == [
        (str(number), "0.0", "0.1") for number in (1, 2, 3)
    ]
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["verdict"] == "held"
    assert record["looks"] == [1, 2, 3]
    assert record["overrides"] == ["method=zero_lr", "freeze=head", *QUICK]
    assert record["config_hash"] == folder.name[-8:]
    assert {"reason", "counts", "loss_first", "loss_last", "seed", "threads", "device", "trained_digest", "cost"} <= set(
        record
    )
    assert set(record["git"]) == {"commit", "dirty"}
    assert "torch" in record["versions"]


def test_version_prints_the_version(cli_process):
    assert cli_process("--version").stdout == f"freeze-runner {runner.__version__}\n"


def test_a_plan_lists_every_parameter_and_writes_nothing(cli):
    code, out, _ = cli("plan=true", "model=mlp", "freeze=bias", "method=zero_lr", "groups=one")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["body.weight", "1", "2,048", "32x64", "all", "0.1", "True"] in lines
    assert ["head.bias", "1", "10", "10", "all/frozen", "0", "True", "frozen"] in lines
    assert "there.weight = back.weight" in out
    assert "5 of 9 parameters would be frozen" in out
    assert not Path("outputs").exists()


def test_a_plan_with_a_wrong_pattern_exits_with_code_2_and_creates_no_folder(cli):
    code, _, err = cli("plan=true", "model=mlp", "freeze=fc")
    assert (code, "matches no parameter" in err, Path("outputs").exists()) == (2, True, False)


WHERE_IT_RAISES = {  # what is wrong with the user's file, and the line that the message names
    "file": ("raise KeyError('oh')\nclass Net(MLP):\n    pass\n", "mine.py, line 2: KeyError: 'oh'"),
    "syntax": ("class Net(MLP)\n    pass\n", "mine.py, line 2: SyntaxError"),
    "in the constructor": (
        "class Net(MLP):\n    def __init__(self, *args):\n        int('x')\n",
        "mine.py, line 4: ValueError",
    ),
    "in forward": (
        "class Net(MLP):\n    def forward(self, x):\n        return x.no_such\n",
        "mine.py, line 4: AttributeError",
    ),
    "by a library": (
        "class Net(MLP):\n    def forward(self, x):\n        return x.view(7, -1)\n",
        "mine.py, line 4: RuntimeError",
    ),
}


@pytest.mark.parametrize(("source", "message"), WHERE_IT_RAISES.values(), ids=WHERE_IT_RAISES)
@pytest.mark.parametrize("plan", ["plan=false", pytest.param("plan=true", marks=pytest.mark.long)])
def test_an_error_in_the_users_code_exits_with_code_1_and_its_line_names_the_users_file_and_line(cli, source, message, plan):
    Path("mine.py").write_text(f"from runner.training.models import MLP\n{source}")
    arguments = ("model=custom", "model.build._target_=mine.Net", "+model.build._args_=[[8]]", "model.input=[8]")
    code, _, err = cli(*arguments, "model.classes=10", "freeze.patterns=[head]", plan)
    assert (code, err.count("\n"), message in err) == (1, 1, True), err


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=custom", "optimizer._target_=mine.Sgd"),
        ("method._target_=mine.Method", "~method.clean"),
        ("task=custom", "task._target_=mine.task"),
        ("data=custom", "data._target_=mine.Data"),
        (
            "scheduler=custom",
            "scheduler._target_=torch.optim.lr_scheduler.LambdaLR",
            "+scheduler.lr_lambda._target_=mine.Rate",
        ),
    ],
    ids=lambda overrides: overrides[0],
)
def test_an_error_in_a_users_class_of_any_kind_exits_with_code_1_and_names_its_line(cli, overrides):
    Path("mine.py").write_text(
        "import torch, runner\n"
        "class Sgd(torch.optim.SGD):\n"
        "    def step(self, closure=None): raise ValueError('oh')\n"
        "class Method(runner.FreezingMethod):\n"
        "    def groups(self, groups, selection): raise ValueError('oh')\n"
        "def task(model, batch): raise ValueError('oh')\n"
        "class Data:\n"
        "    def __iter__(self): raise ValueError('oh')\n"
        "class Rate:\n"
        "    def __call__(self, step): raise ValueError('oh')\n"
    )
    code, _, err = cli(*QUICK, *overrides)
    assert (code, err.count("\n")) == (1, 1)
    assert re.match(r"freeze-runner: failed: mine\.py, line \d+: ValueError: oh \(log: ", err), err


def test_an_exception_in_a_custom_class_is_one_line_with_code_1_and_its_traceback_is_in_the_log(cli):
    Path("buggy.py").write_text("class Net:\n    def __init__(self):\n        raise KeyError('oh')\n")
    code, _, err = cli("model=custom", "model.build._target_=buggy.Net", "model.input=[8]", "model.classes=4")
    assert code == 1
    assert "KeyError: 'oh'" in err
    assert len(err.splitlines()) == 1
    (folder,) = run_folders()
    assert json.loads((folder / "run.json").read_text())["reason"] == "buggy.py, line 3: KeyError: 'oh'"
    log = (folder / "runner.log").read_text()
    assert "Traceback" in log
    assert 'buggy.py", line 3' in log


def test_custom_classes_are_imported_from_the_current_folder(cli):
    Path("mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self): super().__init__(torch.nn.Linear(8, 4), torch.nn.Linear(4, 4))\n"
        "class Sgd(torch.optim.SGD): pass\n"
    )
    code, out, _ = cli(
        "model=custom", "model.build._target_=mine.Net", "model.input=[8]", "model.classes=4",
        "optimizer=custom", "optimizer._target_=mine.Sgd", "++optimizer.lr=0.1", "batches=2",
    )  # fmt: skip
    assert code == 0
    assert "HELD  2 of 2" in out  # model.head=auto found the last layer


def test_strict_lets_a_run_pass_in_which_what_is_frozen_held_and_everything_else_trained(cli):
    assert cli("method=requires_grad", "freeze=head", "strict=true", *QUICK)[0] == 0


TWO_HEADS = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
    def forward(self, x):
        return self.head(self.body(x))
"""
UNUSED_HEAD = (
    "model=custom", "model.build._target_=mine.Net", "model.head=unused", "model.input=[8]", "model.classes=4",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=mlp", "method=none", "freeze=head"), "2 frozen tensors leaked (head.weight and head.bias)"),
        (
            ("model=mlp", "freeze=none", "groups=module", "groups.names=[head]"),
            "7 trainable parameters did not change (body.weight, body.bias, norm.weight and 4 more)",
        ),
        (
            (*UNUSED_HEAD, "freeze=backbone"),
            "2 trainable parameters did not change (unused.weight and unused.bias); no parameter was trained",
        ),
        (("model=mlp", "freeze=all"), "no parameter was trained"),
        (("model=mlp", "freeze=head", "optimizer.lr=1e30"), "the loss became NaN or infinite at step 2"),
    ],
)
def test_strict_exits_with_code_3_and_says_why_in_one_line(cli, arguments, message):
    Path("mine.py").write_text(TWO_HEADS)
    code, _, err = cli(*arguments, "batches=2", "strict=true")
    assert (code, err.splitlines()[-1]) == (3, f"freeze-runner: strict: {message}")


def test_a_run_that_trains_nothing_or_whose_loss_becomes_nan_does_not_look_like_one_that_held(cli):
    Path("mine.py").write_text(TWO_HEADS)
    assert cli(*UNUSED_HEAD, "freeze=backbone", "batches=2", "hydra.run.dir=untrained")[0] == 0
    assert cli("freeze=head", "optimizer.lr=1e30", *QUICK, "hydra.run.dir=infinite")[0] == 0
    assert cli("freeze=head", *QUICK, "hydra.run.dir=good")[0] == 0
    headlines = {name: re.search("<h1.*</h1>", Path(name, "report.html").read_text())[0] for name in HEADLINES}
    assert headlines == HEADLINES


HEADLINES = {
    "untrained": '<h1 class="bad">Held, but nothing trained</h1>',
    "infinite": '<h1 class="bad">Held, but loss not finite</h1>',
    "good": "<h1>Held</h1>",
}


def test_a_loss_that_is_not_finite_does_not_stop_the_run_and_is_printed_and_recorded(cli):
    code, out, _ = cli("optimizer.lr=1e30", *QUICK)
    assert code == 0
    assert (
        "HELD, BUT LOSS NOT FINITE  2 of 2 frozen tensors kept every bit; the loss became NaN or infinite at step 2" in out
    )
    (folder,) = run_folders()
    record = json.loads((folder / "run.json").read_text())
    assert record["loss_last"] is None
    assert record["notes"] == ["the loss became nan at step 2"]
    assert [row["loss"] for row in read_table(folder / "steps.csv")][1:] == ["nan", "nan"]


def test_a_folder_that_contains_a_run_is_refused_and_not_changed(cli):
    assert cli("hydra.run.dir=here", *QUICK)[0] == 0
    before = {path: path.read_bytes() for path in Path("here").iterdir() if path.is_file()}
    code, _, err = cli("hydra.run.dir=here", *QUICK)
    assert code == 2
    assert "already contains a run" in err
    assert before == {path: path.read_bytes() for path in Path("here").iterdir() if path.is_file()}


def test_save_writes_a_checkpoint_of_the_model(cli):
    from safetensors.torch import load_model

    from runner.training.models import MLP

    assert cli("save=true", "hydra.run.dir=here", *QUICK)[0] == 0
    missing, unexpected = load_model(MLP([64]), "here/model.safetensors")
    assert not missing
    assert not unexpected


@pytest.mark.long
def test_an_interrupted_run_writes_its_results_and_exits_with_code_130():
    Path("mine.py").write_text(
        "from pathlib import Path\n"
        "from runner.training.models import MLP\n"
        "class Net(MLP):\n"
        "    def forward(self, x):\n"
        "        if Path('first_pass').exists(): Path('second_pass').touch()\n"
        "        Path('first_pass').touch()\n"
        "        return super().forward(x)\n"
    )
    arguments = ["model=mlp", "model.build._target_=mine.Net", "batches=10000000", "hydra.run.dir=here"]
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    while not Path("second_pass").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    record = json.loads(Path("here/run.json").read_text())
    assert record["status"] == "interrupted"
    assert len(Path("here/steps.csv").read_text().splitlines()) >= 2
    assert record["verdict"] == "held"


@pytest.mark.long
def test_two_runs_started_at_the_same_time_get_different_folders():
    command = [sys.executable, "-m", "runner", *QUICK]
    processes = [
        subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL) for _ in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(run_folders()) == 2


def test_a_run_whose_checkpoint_cannot_be_written_is_recorded_as_failed_without_tables(cli):
    Path("here/model.safetensors").mkdir(parents=True)
    code, _, err = cli("save=true", "hydra.run.dir=here", *QUICK)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert json.loads(Path("here/run.json").read_text())["status"] == "failed"
    assert not Path("here/changes.csv").exists()


def test_a_plan_in_which_an_exception_occurs_exits_with_code_1_and_creates_no_folder(cli):
    Path("buggy.py").write_text("class Net:\n    def __init__(self):\n        raise KeyError('oh')\n")
    code, _, err = cli("plan=true", "model=custom", "model.build._target_=buggy.Net", "model.input=[8]", "model.classes=4")
    assert code == 1
    assert "KeyError: 'oh'" in err
    assert not Path("outputs").exists()


def test_a_plan_lists_parameters_that_the_method_turns_into_buffers(cli):
    _, out, _ = cli("plan=true", "method=to_buffer", "freeze=backbone", "model=mlp")
    assert "7 of 9 parameters would be frozen" in out
    assert ["body", "2", "2,080", "(none)", "False", "frozen"] in [line.split() for line in out.splitlines()]


def test_a_run_whose_tensors_moved_and_returned_does_not_print_that_they_kept_every_bit(cli):
    _, out, _ = cli("method=restore", "freeze=head", *QUICK)
    assert "  2 frozen tensors; 2 of them moved and returned" in out


@pytest.mark.long
def test_an_override_takes_precedence_over_the_recipe(cli):
    _, out, _ = cli("plan=true", "experiment=freeze_one", "freeze=conv1", "model.input=[3,64,64]")
    frozen = [line.split()[0] for line in out.splitlines() if line.endswith("frozen") and line.startswith(("conv", "fc"))]
    assert frozen == ["conv1.weight"]


def test_head_auto_finds_the_module_whose_outputs_are_the_classes_and_prints_a_note(cli):
    Path("mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body, self.top, self.unused = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4), torch.nn.Linear(3, 3)\n"
        "    def forward(self, x):\n"
        "        return self.top(self.body(x))\n"
    )
    code, out, _ = cli(
        "model=custom", "model.build._target_=mine.Net", "model.input=[8]", "model.classes=4", "batches=2", "verbose=true"
    )
    assert code == 0
    assert "note: model.head=auto found top: the loss of the first batch is made there" in out
    (folder,) = run_folders()
    rows = read_table(folder / "changes.csv")
    assert [row["name"] for row in rows if row["frozen"] == "True"] == ["top.weight", "top.bias"]


def test_a_call_of_exit_in_a_custom_class_ends_the_run_and_is_printed(cli):
    Path("buggy.py").write_text("import sys\nclass Net:\n    def __init__(self):\n        sys.exit(7)\n")
    code, _, err = cli("model=custom", "model.build._target_=buggy.Net", "model.input=[8]", "model.classes=4")
    assert (code, "SystemExit: 7" in err) == (1, True)


def test_the_error_for_a_model_that_returns_several_tensors_names_the_key_to_set(cli):
    Path("mine.py").write_text(
        "import runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x), super().forward(x)\n"
    )
    code, _, err = cli(*QUICK, "model.build._target_=mine.Net")
    assert (code, "task.outputs={0: 1, 1: 0.3}" in err) == (2, True)


def test_an_interpolation_of_a_missing_key_is_refused_before_a_folder_is_created(cli):
    code, _, err = cli("model=mlp", "data.batch_size=${nowhere}")
    assert (code, "nowhere" in err, len(err.splitlines())) == (2, True, 1)
    assert not Path("outputs").exists()


def test_a_plan_lists_each_hazard_with_its_cause(cli):
    code, out, _ = cli("plan=true", "model=mlp", "freeze=backbone", "method=zero_lr", "scheduler=one_cycle", "batches=20")
    assert code == 0
    assert (
        "hazard: zero_lr with OneCycleLR: the learning rate of the group frozen becomes 0.1 at step 6: "
        "body.weight and 6 more would leak\n" in out
    )
    assert "hazard: buffers of BatchNorm1d norm will change (normal; freeze.buffers=frozen stops it)\n" in out


def test_a_plan_lists_parameters_that_would_be_idle(cli):
    _, out, _ = cli("plan=true", "model=mlp", "freeze=none", "groups=module", "groups.names=[head]")
    assert "hazard: body.weight and 6 more would stay idle: in no group of the optimizer\n" in out


def test_a_plan_without_hazards_prints_that_none_is_foreseen(cli):
    _, out, _ = cli("plan=true", "model=mlp", "freeze=backbone", "freeze.buffers=frozen")
    assert "no hazard is foreseen" in out
    assert "hazard:" not in out


def test_a_plan_with_a_method_that_does_not_work_with_the_model_exits_with_code_2(cli):
    code, _, err = cli("plan=true", "model=mlp", "method=detach", "freeze=head")
    assert code == 2
    assert "skipped: " in err


def test_a_predicted_leak_is_printed_on_stderr_and_logged_before_the_training_and_recorded(cli, tmp_path):
    code, out, err = cli("model=mlp", "freeze=backbone", "method=zero_lr", "optimizer=rprop", "hydra.run.dir=here")
    warning = "Rprop updates at lr 0: body.weight and 6 more would leak"
    assert (code, err) == (0, f"freeze-runner: warning: {warning}\n")
    assert warning not in out
    assert json.loads((tmp_path / "here" / "run.json").read_text())["notes"][0] == warning
    assert warning in (tmp_path / "here" / "runner.log").read_text().split("finished")[0]


@pytest.mark.parametrize("part", ["hydra", "job", "all"])
def test_the_resolved_config_can_be_printed(cli, part):
    code, out, err = cli("model=mlp", "scheduler=cosine", "--cfg", part, "--resolve")
    assert (code, err) == (0, "")
    assert ("METHOD__FREEZE__sSEED__HASH8" in out) == (part == "hydra")


def test_the_error_for_an_old_name_of_a_resolver_recommends_the_new_one(cli):
    code, _, err = cli("model=mlp", "hydra.run.dir=out/${config_hash:}")
    assert (code, err) == (2, "freeze-runner: there is no resolver ${config_hash:}; did you mean ${runner.config_hash:}?\n")
    code, _, err = cli("model=mlp", "scheduler=cosine", "++scheduler.T_max=${steps:}")
    assert (code, err) == (
        2,
        "freeze-runner: scheduler.T_max: there is no resolver ${steps:}; did you mean ${runner.steps:}?\n",
    )


def test_a_long_reason_is_cut_to_a_line_of_400_characters_that_ends_with_the_log(cli):
    Path("long_reason.py").write_text(
        "class Net:\n    def __init__(self):\n        raise RuntimeError('the beginning ' + 'y' * 600)\n"
    )
    target = ("model=custom", "model.build._target_=long_reason.Net", "model.input=[8]", "model.classes=4")
    code, _, err = cli(*target, "hydra.run.dir=here")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "the beginning yyy" in err
    assert err.endswith("... (log: here/runner.log)\n")
    assert len(err.rstrip()) == 400
    assert "y" * 600 in json.loads(Path("here/run.json").read_text())["reason"]

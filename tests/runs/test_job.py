"""`run` from Python, as in a notebook, with synthetic data and with images."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose

from runner import run
from runner.config.check import check
from runner.config.compose import hydra_initialized
from runner.errors import ConfigError
from runner.experiment import experiment
from tests.conftest import ROOT

QUICK = ("model=mlp", "batches=2")


def test_run_returns_status_verdict_model_files_and_rows():
    result = run("method=zero_lr", "freeze=head", *QUICK)
    assert (result.status, result.verdict, result.exit_code) == ("finished", "held", 0)
    assert isinstance(result.model, torch.nn.Module)
    assert (result.folder / "changes.csv").is_file()
    assert len(result.rows) == 12


@pytest.mark.parametrize("mode", [True, False])
def test_flags_and_modes_of_the_returned_model_are_restored(mode):
    Path("in_mode.py").write_text(
        f"import runner.training.models\ndef net(**kw): return runner.training.models.MLP(**kw).train({mode})\n"
    )
    target = "model.build._target_=in_mode.net"
    result = run(target, "method=requires_grad", "freeze=backbone", "freeze.buffers=frozen", *QUICK)
    sys.modules.pop("in_mode")
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert {module.training for module in result.model.modules()} == {mode}
    assert "train" not in vars(result.model.norm)


def test_a_method_may_wrap_the_model_and_the_result_has_the_original_one():
    Path("wraps.py").write_text(
        "import torch\n"
        "from runner.methods.requires_grad import RequiresGrad\n"
        "class Wraps(RequiresGrad):\n"
        "    def prepare(self, model, selection, undo):\n"
        "        return torch.nn.DataParallel(super().prepare(model, selection, undo))\n"
    )
    result = run("method._target_=wraps.Wraps", "freeze=backbone", *QUICK)
    assert result.verdict == "held"
    assert len(result.rows) == 12
    assert type(result.model).__name__ == "MLP"


def test_run_leaves_the_logging_of_its_caller_as_it_was(monkeypatch):
    root = logging.getLogger()
    mine = logging.NullHandler()
    monkeypatch.setattr(root, "handlers", [mine])
    level = root.level
    run("hydra/job_logging=default", *QUICK)
    assert (root.handlers, root.level) == ([mine], level)


@pytest.mark.parametrize("plan", ["plan=true", "plan=True", "++plan=yes"])
def test_a_plan_from_python_raises_and_does_not_exit(plan):
    with pytest.raises(ConfigError, match="command line"):
        run(plan, *QUICK)


def test_data_that_ends_early_is_noted_and_data_that_is_longer_is_cut():
    Path("ends.py").write_text(
        "import torch\ndef source(count):\n    for _ in range(count): yield torch.randn(4, 64), torch.randint(10, (4,))\n"
    )
    common = ("model=mlp", "batches=4", "data=custom", "data._target_=ends.source")
    assert run(*common, "++data.count=2").record["notes"] == ["the data ended after 2 of 4 steps"]
    result = run(*common, "++data.count=12")
    assert result.record["notes"] == []
    assert len((result.folder / "steps.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("bad", ["batches=0", "+typo=1", "freeze=fc", "optimizer._target_=no.such"])
def test_a_wrong_config_is_a_config_error_and_never_an_exit(bad):
    with pytest.raises(ConfigError):
        run(bad, *QUICK[:1])


def test_an_unknown_choice_is_a_value_error_too():
    with pytest.raises(ValueError, match="did you mean resnet18"):
        run("model=resnet19")


def test_an_exception_of_the_users_class_is_raised_unchanged():
    Path("mine_too.py").write_text("class Net:\n    def __init__(self):\n        raise KeyError('oh')\n")
    with pytest.raises(KeyError, match="oh"):
        run("model=custom", "model.build._target_=mine_too.Net", "model.input=[8]", "model.classes=4")


def test_a_run_inside_another_hydra_app_keeps_the_apps_config():
    from hydra import compose

    from runner.config.compose import hydra_initialized

    with hydra_initialized():
        assert run(*QUICK).status == "finished"
        assert compose("config", ["model=mlp"]).batches == "auto"


@pytest.fixture
def pictures():
    """Create a folder of pictures in two classes; return the override that uses it."""
    from PIL import Image

    for index, kind in enumerate(("cats", "dogs")):
        Path("pictures", kind).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (20, 16), (40 * number, 90 * index, 30)).save(f"pictures/{kind}/{number}.png")
    return "data.root=pictures"


@pytest.mark.parametrize("method", ["requires_grad", "zero_lr"])
def test_frozen_parameters_hold_on_scanned_digits(method):
    result = run(f"method={method}", "freeze=fc", "data=digits", "model.input=[3,32,32]", "model.classes=10", "batches=3")
    assert result.verdict == "held"
    assert result.record["counts"]["held"] == 2
    assert len(result.rows) == 122


@pytest.mark.parametrize("method", ["requires_grad", "zero_lr"])
def test_frozen_parameters_hold_on_a_folder_of_pictures(method, pictures):
    more = ("data=image_folder", pictures, "model.input=[3,40,40]", "model.classes=2", "batches=3")
    result = run(f"method={method}", "freeze=backbone", *more)
    assert result.verdict == "held"
    assert result.record["counts"]["held"] == 60
    assert result.record["counts"]["trained"] == 2


@pytest.mark.long
def test_a_run_inside_another_hydra_app_keeps_the_apps_job_name(tmp_path):
    Path("app.py").write_text(
        "import hydra\n"
        "from hydra.core.hydra_config import HydraConfig\n"
        "from runner import run\n"
        "from runner.config.compose import VERSION_BASE\n"
        "@hydra.main(**VERSION_BASE, config_path=None)\n"
        "def main(config):\n"
        "    assert run('model=mlp', 'batches=1', 'cost=off').status == 'finished'\n"
        "    print(HydraConfig.get().job.name)\n"
        "main()\n"
    )
    command = [sys.executable, "app.py", "-m", "+number=1,2", "hydra.sweep.dir=mine"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert [line for line in done.stdout.splitlines() if line in ("app", "runner")] == ["app", "app"]
    assert sorted(path.name for path in Path("mine").glob("*/*.log")) == ["app.log", "app.log"]


@pytest.mark.parametrize(("where", "noted"), [("the model", True), ("between steps", False)])
def test_an_interrupt_within_a_step_is_noted(where, noted):
    Path("stops.py").write_text(
        "import runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def forward(self, x):\n"
        "        logits = super().forward(x)\n"
        "        if self.training and self.norm.num_batches_tracked == 2: raise KeyboardInterrupt\n"
        "        return logits\n"
    )

    def interrupt(step):
        if step.number == 1:
            raise KeyboardInterrupt

    target = {"the model": ["model.build._target_=stops.Net"], "between steps": []}[where]
    with hydra_initialized():
        config = check(compose("config", ["model=mlp", "batches=4", "cost=off", *target]), "requires_grad")
    notes = []
    outcome = experiment(
        config, interrupt if where == "between steps" else lambda step: None, lambda text, **_: notes.append(text)
    )
    sys.modules.pop("stops", None)
    assert (outcome.interrupted, len(outcome.steps)) == (True, 1)
    within = "interrupted within step 2: parameters and buffers may hold a part of it"
    assert (within in notes) == noted

"""The files of `conf/freeze` on models of other libraries: what they freeze, or one short message with what fits instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.contract import MAX_ERROR_LINE
from tests.conftest import read_table

MODEL = ("model=custom", "model.input=[4]", "model.classes=3", "batches=2")


class Net(nn.Module):
    """A frozen layer, a norm, and a head in which lies the last layer."""

    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.head = nn.ModuleDict({"fc": nn.Linear(4, 3)})
        self.body.requires_grad_(not frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head["fc"](self.norm(self.body(x).relu()))


def model_of(frozen: bool) -> tuple[str, ...]:
    """Return the overrides that train a Net."""
    return (*MODEL, f"model.build._target_={__name__}.Net", f"+model.build.frozen={frozen}".lower())


MATCHES_NO = "matches no parameter or module of the model"
NEAR_WEIGHTS = "did you mean head.fc.weight or norm.weight or body.weight?"
NO_CONV1 = f"freeze.keep: 'conv1.weight' {MATCHES_NO}; freeze=backbone freezes all but its head; did you mean "
MESSAGES = {
    "freeze=fc": f"freeze.patterns: 'fc' {MATCHES_NO}; freeze=head freezes its head; did you mean head.fc?",
    "freeze=fc_weight": f"freeze.patterns: 'fc.weight' {MATCHES_NO}; freeze=head freezes its head; {NEAR_WEIGHTS}",
    "freeze=conv1": f"freeze.patterns: 'conv1' {MATCHES_NO}; freeze=head freezes its head (log: ",
    "freeze=all_but_conv1_and_fc": NO_CONV1,
    "freeze=batchnorm": (
        "freeze.patterns: 'type:_BatchNorm' matches no parameter: the model has no such module; "
        "@norms are its norm layers, as in freeze.patterns=[@norms]"
    ),
    "experiment=freeze_one": f"freeze.patterns: 'fc.weight' {MATCHES_NO}; freeze=head freezes its head; {NEAR_WEIGHTS}",
    "experiment=zero_lr_fc": f"freeze.patterns: 'fc.weight' {MATCHES_NO}; freeze=head freezes its head; {NEAR_WEIGHTS}",
    "experiment=module_groups": f"groups.names: 'conv1' {MATCHES_NO}; @head is its head (log: ",
    "experiment=train_conv1_and_fc": NO_CONV1,
}


@pytest.mark.parametrize(("choice", "message"), MESSAGES.items())
def test_a_preset_for_resnet_says_what_fits_another_model(cli, choice, message):
    code, _, error = cli(*model_of(False), choice, "model.input=[4]")
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert len(error) <= MAX_ERROR_LINE


@pytest.mark.parametrize("method", ["requires_grad", "zero_lr"])
def test_as_built_holds_what_the_builder_froze_and_trains_the_rest(cli, method):
    code, _, _ = cli(*model_of(True), "freeze=as_built", f"method={method}", "strict=true", "hydra.run.dir=run")
    assert code == 0
    verdicts = {row["name"]: row["verdict"] for row in read_table(Path("run/changes.csv"))}
    held = ("body.weight", "body.bias")
    assert verdicts == dict.fromkeys(verdicts, "trained") | dict.fromkeys(held, "held")


def test_as_built_of_a_model_that_its_builder_left_trainable_freezes_nothing_which_strict_refuses(cli):
    why = "no parameter has requires_grad=False as built"
    arguments = (*model_of(False), "freeze=as_built")
    assert cli(*arguments, "hydra.run.dir=run")[0] == 0
    record = json.loads(Path("run/run.json").read_text())
    assert record["nothing_frozen"] == why
    assert f"@as_built freezes nothing: {why}" in record["notes"]
    code, _, error = cli(*arguments, "strict=true")
    assert code == 3
    assert error == "freeze-runner: strict: nothing was frozen\n"


@pytest.mark.long
def test_a_sweep_with_strict_says_which_run_froze_nothing_as_built(cli):
    code, _, error = cli("-m", *model_of(False), "freeze=as_built,head", "strict=true", "hydra.sweep.dir=sweep")
    assert code == 3
    assert "strict: 1 of 2 runs: requires_grad__as_built" in error
    assert "(nothing was frozen)" in error


def test_freezing_nothing_on_purpose_is_sound(cli):
    assert cli(*model_of(False), "freeze=none", "strict=true")[0] == 0

"""`assert_frozen` and `assert_trains` pass where a training does what is declared, and otherwise say what happened."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from runner import select
from runner.errors import ConfigError
from runner.proof.audit_report import LeakError, UnsoundError
from runner.testing import assert_frozen, assert_trains
from tests.conftest import ROOT


class Net(nn.Module):
    """A backbone with BatchNorm, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone(x))


def train(model, parameters=None, steps=3, **options):
    """Train with SGD."""
    optimizer = torch.optim.SGD(model.parameters() if parameters is None else parameters, **{"lr": 0.1, **options})
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()


def freeze(model):
    """Freeze the backbone by its flags."""
    model.backbone.requires_grad_(False)
    return model


def refused(assertion, block):
    """Return what the assertion says of the block."""
    with pytest.raises(AssertionError) as caught, assertion:
        block()
    assert isinstance(caught.value, (LeakError, UnsoundError))
    return str(caught.value)


def test_what_is_frozen_by_its_flags_passes_and_the_rest_trains():
    model = freeze(Net())
    with assert_frozen(model, ["backbone"]), assert_trains(model, ["head"]):
        train(model)
    with assert_frozen(model, None):
        train(model)
    with assert_frozen(model, select(model, ["backbone"])), assert_trains(model, select(model, ["head"])):
        train(model)


def test_a_leak_is_told_with_what_was_given_the_names_the_distances_and_the_causes():
    model = Net()
    with pytest.raises(LeakError) as caught, assert_frozen(model, ["backbone.0"]):
        train(model)
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 2 tensors that patterns=['backbone.0'] declares frozen changed in 3 steps:"
    assert [line.split(" changed by up to ")[0] for line in lines] == ["  backbone.0.weight", "  backbone.0.bias"]
    assert all(line.endswith(": gradient") for line in lines)


def test_a_long_list_of_leaks_is_cut():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(8)))
    with pytest.raises(LeakError, match=r"16 of 16 tensors(.*\n){11}  and 6 more$"), assert_frozen(model, ["**"]):
        train(model)


def test_drift_of_batchnorm_statistics_fails_only_if_buffers_are_declared_frozen():
    model = freeze(Net())
    told = refused(assert_frozen(model, ["backbone"], buffers="frozen"), lambda: train(model))
    assert re.search(r"backbone\.1\.running_mean changed by up to .*: forward_write", told)


def test_a_block_without_a_step_proves_nothing():
    model = Net()
    told = refused(assert_frozen(model, ["backbone"]), lambda: model(torch.randn(8, 3)))
    assert told.startswith("nothing was trained in the block, so it does not prove what is frozen: no optimizer step")
    first, *lines = refused(assert_trains(model, ["head"]), lambda: None).splitlines()
    assert first.endswith("did not train, and no optimizer step of the model was seen:")
    assert lines == ["  head.weight did not change: no_gradient", "  head.bias did not change: no_gradient"]


def test_a_block_in_which_nothing_changes_proves_nothing():
    model = freeze(Net())
    told = refused(assert_frozen(model, ["backbone"]), lambda: train(model, lr=0.0))
    assert "no parameter changed in 3 steps:\n  head.weight did not change: lr_zero\n" in told


def test_a_model_that_is_frozen_as_a_whole_passes_with_the_step_that_trains_another():
    teacher, student = Net().eval().requires_grad_(False), Net()
    with assert_frozen({"teacher": teacher, "student": student}, ["teacher"], buffers="frozen"):
        train(student)
    told = refused(assert_frozen(teacher, ["**"]), lambda: train(student))
    assert 'give both: assert_frozen({"teacher": teacher, "student": student}, ["teacher"])' in told


def test_a_step_by_hand_is_a_training_too():
    model = freeze(Net())
    with assert_frozen(model, ["backbone"]), assert_trains(model, ["head"]):
        model(torch.randn(8, 3)).square().mean().backward()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter -= 0.1 * parameter.grad


def test_patterns_that_match_nothing_are_refused_before_the_block():
    for assertion in (assert_frozen, assert_trains):
        with pytest.raises(ConfigError, match="bakcbone"), assertion(Net(), ["bakcbone"]):
            pytest.fail("the block ran")
        with pytest.raises(ConfigError, match=rf"{assertion.__name__}: patterns is empty"), assertion(Net(), []):
            pytest.fail("the block ran")
        with pytest.raises(ConfigError, match=r"^patterns: 'backbone' is one pattern"), assertion(Net(), "backbone"):
            pytest.fail("the block ran")
        with pytest.raises(ConfigError, match=r"^patterns is 3; give a list of patterns"), assertion(Net(), 3):
            pytest.fail("the block ran")
    with pytest.raises(ConfigError, match="matches no parameter"), assert_trains(Net(), ["backbone.1.running_mean"]):
        pytest.fail("the block ran")


def test_flags_that_freeze_nothing_fail():
    model = Net()
    told = refused(assert_frozen(model, None), lambda: train(model))
    assert told == "nothing was frozen: requires_grad=False on entry declares no tensor of the model frozen"


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda model: None, "not_in_optimizer"),
        (lambda model: model.head.requires_grad_(False), "no_gradient"),
    ],
)
def test_a_parameter_that_does_not_train_is_told_with_its_cause(spoil, cause):
    model = Net()
    spoil(model)
    parameters = list(model.backbone.parameters() if cause == "not_in_optimizer" else model.parameters())
    with pytest.raises(UnsoundError) as caught, assert_trains(model, ["head"]):
        train(model, parameters)
    assert str(caught.value).splitlines() == [
        "2 of 2 parameters that patterns=['head'] matches did not train in 3 steps:",
        f"  head.weight did not change: {cause}",
        f"  head.bias did not change: {cause}",
    ]


def test_a_parameter_that_became_nan_did_not_train():
    model = Net()
    told = refused(assert_trains(model, ["head"]), lambda: train(model, lr=float("nan")))
    assert "head.weight became NaN or infinite" in told


def test_a_parameter_that_was_put_back_did_not_train():
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = refused(assert_trains(model, ["head"]), lambda: (train(model), model.load_state_dict(before)))
    assert "head.bias has its initial bits again: it differed after step 1" in told


def test_a_selection_of_another_model_is_refused():
    model, other = Net(), nn.Sequential(nn.Linear(3, 2))
    told = refused(assert_trains(model, select(other, ["0"])), lambda: train(model))
    assert "0.weight is no parameter of the model" in told


def test_a_frozen_nan_is_held():
    model = freeze(Net())
    model.backbone[0].weight.data[0, 0] = float("nan")
    with assert_frozen(model, ["backbone"]):
        train(model)


def test_the_exception_of_the_block_is_the_one_that_is_raised():
    for assertion in (assert_frozen, assert_trains):
        with pytest.raises(KeyError), assertion(Net(), ["head"]):
            raise KeyError("mine")


@pytest.mark.long
def test_a_failure_in_a_suite_of_pytest_shows_the_whole_message():
    code = """
        import torch
        from runner.testing import assert_frozen

        def test_the_backbone_is_frozen():
            model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with assert_frozen(model, ["0"]):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
    """
    with open("test_mine.py", "w") as file:
        file.write(textwrap.dedent(code))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    process = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "2 of 2 tensors that patterns=['0'] declares frozen changed in 1 step:" in process.stdout
    assert "0.bias changed by up to 0." in process.stdout

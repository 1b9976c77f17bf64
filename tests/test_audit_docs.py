"""The examples of `docs/audit.md` work as they are written there, and say so where a common mistake is made in them."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from runner import audit
from runner.proof.audit_report import LeakError
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "audit.md").read_text()


def example(first_line):
    """Return the code of the example that begins with a comment."""
    (code,) = re.findall(rf"```python\n# {first_line}\n(.*?)```", PAGE, re.S)
    return code


def net(inputs, outputs):
    """Return a small model with BatchNorm, which follows no bias: the gradient of one would be made of rounding errors."""
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, outputs))


def sgd(*models):
    """Return an optimizer of all parameters of the models."""
    return torch.optim.SGD([parameter for model in models for parameter in model.parameters()], lr=0.1)


def executed(code, **names):
    """Run an example with these names, and return the report that it makes."""
    names = {"audit": audit, "torch": torch, "copy": copy, "softplus": softplus, **names}
    exec(code, names)
    return names["report"]


def verdicts(report, model):
    """Return the verdicts of the parameters of one of the models."""
    rows = [row for row in report.rows if row["kind"] == "parameter" and row["name"].startswith(f"{model}.")]
    return {row["verdict"] for row in rows}


def distillation():
    torch.manual_seed(0)
    student = net(3, 2)
    batches = [torch.randn(8, 3) for _ in range(3)]
    return {"teacher": net(3, 2), "student": student, "optimizer": sgd(student), "batches": batches}


def test_a_teacher_holds_while_its_student_trains():
    report = executed(example("teacher and student"), **distillation())
    assert (verdicts(report, "teacher"), verdicts(report, "student")) == ({"held"}, {"trained"})


def test_a_teacher_in_train_mode_leaks_by_its_batchnorm():
    with pytest.raises(AssertionError, match=r"teacher\.2\.running_mean \(forward_write\)"):
        executed(example("teacher and student").replace(".eval()", ""), **distillation())


def alignment():
    torch.manual_seed(0)
    policy = net(3, 4)
    rewards = torch.randn(4)
    batches = [torch.randn(8, 3) for _ in range(3)]
    return {
        "policy": policy,
        "optimizer": sgd(policy),
        "batches": batches,
        "reward": lambda log_probabilities: (log_probabilities.exp() * rewards).sum(-1).mean(),
    }


def test_a_reference_model_holds_while_the_policy_trains():
    report = executed(example("policy and reference"), **alignment())
    assert (verdicts(report, "reference"), verdicts(report, "policy")) == ({"held"}, {"trained"})


def test_a_reference_model_that_is_no_copy_leaks_under_both_names():
    code = example("policy and reference").replace("copy.deepcopy(policy).requires_grad_(False)", "policy")
    code = code.replace("report.raise_if_unsound()", "")
    report = executed(code, **alignment())
    assert verdicts(report, "policy") == {"leaked"}
    assert {row["aliases"] for row in report.rows if row["name"] == "policy.0.weight"} == {"reference.0.weight"}
    with pytest.raises(LeakError, match=r"policy\.0\.weight"):
        report.raise_if_leaked()


def adversaries():
    torch.manual_seed(0)
    models = {"generator": net(2, 3), "discriminator": net(3, 1)}
    optimizers = {f"{name}_optimizer": sgd(model) for name, model in models.items()}
    return {**models, **optimizers, "batches": [torch.randn(8, 3) for _ in range(3)]}


def actor_and_critic():
    torch.manual_seed(0)
    models = {"actor": net(3, 2)[:2].append(nn.Linear(4, 2)), "critic": net(5, 1)[:2].append(nn.Linear(4, 1))}
    optimizers = {f"{name}_optimizer": sgd(model) for name, model in models.items()}
    batches = [(torch.randn(8, 3), torch.randn(8, 2), torch.randn(8, 1)) for _ in range(3)]
    return {**models, **optimizers, "batches": batches}


@pytest.mark.parametrize(
    ("name", "names"), [("generator and discriminator", adversaries), ("actor and critic", actor_and_critic)]
)
def test_two_models_that_train_in_turn_each_hold_in_the_steps_of_the_other(name, names):
    names = names()
    before = {key: copy.deepcopy(value) for key, value in names.items() if isinstance(value, nn.Module)}
    report = executed(example(name), **names)
    for key, model in before.items():
        assert verdicts(report, key) == {"held"}
        assert not any(map(torch.equal, model.parameters(), names[key].parameters()))  # and each was trained


@pytest.mark.parametrize(
    ("name", "names", "leaks"),
    [
        ("generator and discriminator", adversaries, "discriminator"),
        ("actor and critic", actor_and_critic, "critic"),
    ],
)
def test_an_optimizer_that_has_both_models_leaks_in_its_step(name, names, leaks):
    names = names()
    first, second = (value for value in names.values() if isinstance(value, nn.Module))
    names[next(key for key in names if key.endswith("_optimizer"))] = sgd(first, second)
    with pytest.raises(LeakError, match=rf"{leaks}\.0\.weight \(gradient\)"):
        executed(example(name), **names)


@pytest.mark.parametrize(("is_given", "cause"), [(True, "scheduler"), (False, "gradient")])
def test_a_leak_by_a_scheduler_has_that_cause_if_the_audit_knows_the_rates_before_it(is_given, cause):
    torch.manual_seed(0)
    model = net(3, 2)
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2:].parameters()}], lr=0.1)
    with audit(model, ["0"], optimizer if is_given else None) as report:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
            scheduler.step()
    assert {row["cause"] for row in report.rows if row["verdict"] == "leaked"} == {cause}

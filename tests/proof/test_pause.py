"""`report.paused()`: what runs in it, such as an evaluation between two steps, is not seen by the audit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner import audit
from runner.training.evaluate import evaluate


def embedding_net():
    """A model whose embedding is rewritten by each forward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(4, 8, max_norm=0.5), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.mul_(10)
    return model


def train_step(model, optimizer):
    """A step that does not run the first layer, whose gradient is zero."""
    optimizer.zero_grad()
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[1](torch.ones(2, 8)).sum().backward()
    optimizer.step()


def evaluated(model, report):
    with report.paused():
        evaluate(model, lambda model, x: model(x).sum(), [torch.tensor([0, 1])])


def causes(report):
    return {row["name"]: row["cause"] for row in report.rows if row["verdict"] == "leaked"}


@pytest.mark.parametrize("every", [1, None])
def test_the_writes_of_an_evaluation_between_two_steps_are_no_leak(every):
    model = embedding_net()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, every=every) as report:
        for _ in range(3):
            train_step(model, optimizer)
            evaluated(model, report)
    assert causes(report) == {}
    assert [row["verdict"] for row in report.rows] == ["held", "trained", "trained"]


def test_a_forward_pass_of_an_evaluation_is_not_the_cause_of_what_other_code_writes_later():
    model = embedding_net()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, every=1) as report:
        for step in range(3):
            train_step(model, optimizer)
            evaluated(model, report)
            if step == 1:
                model[0].weight.data.add_(1)
    assert causes(report) == {"0.weight": "outside_write"}


class WritesOnce(torch.optim.SGD):
    """Writes to its first parameter in its third step; a replay of a later step does not."""

    calls = 0

    @torch.no_grad()
    def step(self):
        super().step()
        type(self).calls += 1
        if self.calls == 3:
            self.param_groups[0]["params"][0].add_(1)


def test_the_writes_of_an_evaluation_do_not_hide_that_a_step_moved_a_tensor():
    model = embedding_net()
    optimizer, WritesOnce.calls = WritesOnce(model.parameters(), lr=0.1), 0
    with audit(model, ["0"], optimizer) as report:
        for step in range(4):
            if step < 3:
                evaluated(model, report)
            train_step(model, optimizer)
    assert causes(report) == {"0.weight": "unknown"}
    assert "a step between steps 2 and 4 moved it" in report.why_unknown["0.weight"]


@pytest.mark.parametrize("until", [None, 2, 6])
def test_a_write_in_a_pause_that_is_not_put_back_is_a_leak_by_other_code(until):
    model = embedding_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, until=until) as report:
        for step in range(6):
            train_step(model, optimizer)
            if step == 4:
                with report.paused(), torch.no_grad():
                    model[0].weight.add_(1)
    assert causes(report) == {"0.weight": "unknown" if until == 2 else "outside_write"}


def test_steps_in_a_pause_are_not_counted():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, ["bias"], optimizer) as report, report.paused():
        optimizer.step()
    assert report.looks == []


def test_an_audit_that_has_ended_cannot_be_paused():
    with audit(nn.Linear(2, 2), []) as report:
        pass
    with pytest.raises(RuntimeError, match=r"call report.paused\(\) inside the with block"), report.paused():
        pass

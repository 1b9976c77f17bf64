"""Which optimizer steps are noticed, and where the hooks of the audit stand among those of other code."""

from __future__ import annotations

import contextlib
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import optimizer as torch_optimizer

from runner import audit

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
EVERY = pytest.mark.parametrize("every", [None, 1], ids=["powers of two", "every step"])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def backward(model):
    model.zero_grad()
    loss = model(X).square().mean()
    loss.backward()
    return loss


def train(model, *optimizers, steps=6):
    for _ in range(steps):
        backward(model)
        for optimizer in optimizers:
            optimizer.step()


def causes(report):
    return {row["cause"] for row in report.rows if row["frozen"]}


@EVERY
def test_the_steps_of_an_optimizer_that_was_not_given_are_found_and_noted(every):
    model = net()
    given = SGD(model[2].parameters(), lr=0.1)
    with audit(model, ["0"], given, every) as report:
        train(model, given, Adam(model[0].parameters()))
    assert causes(report) == {"gradient"}
    assert report.notes == ["Adam, which was not given, made steps too, with tensors of the model"]


@EVERY
def test_an_optimizer_that_is_made_in_the_block_is_found(every):
    model = net()
    with audit(model, ["0"], every=every) as report:
        train(model, SGD(model.parameters(), lr=0.1))
    assert causes(report) == {"gradient"}
    assert {row["group"] for row in report.rows} == {"0"}
    assert report.notes == []


@EVERY
def test_an_optimizer_that_replaces_the_first_is_found(every):
    model = net()
    model[0].requires_grad_(False)
    first = SGD(model.parameters(), lr=0.1)
    with audit(model, None, first, every) as report:
        train(model, first)
        model[0].requires_grad_(True)
        train(model, Adam(model.parameters()))
    assert causes(report) == {"gradient"}


def test_an_optimizer_of_another_model_is_not_counted():
    model, other = net(), net()
    with audit(model, ["0"]) as report:
        train(other, SGD(other.parameters(), lr=0.1))
    assert (report.looks, report.leaks) == ([], [])
    assert report.notes == ["SGD made 6 steps, but has no tensor of the model"]


def test_an_optimizer_of_another_model_and_its_tensors_are_not_kept_alive(collect_garbage):
    model, other = net(), net()
    alive = [weakref.ref(parameter) for parameter in other.parameters()]
    with audit(model, ["0"]):
        train(other, SGD(other.parameters(), lr=0.1))
        del other
        collect_garbage()
        assert [each() for each in alive] == [None] * 4


def test_a_given_optimizer_that_makes_no_step_is_noted():
    model = net()
    with audit(model, ["0"], Adam(model.parameters())) as report:
        backward(model)
    assert report.notes == ["Adam, which was given, made no step"]


class TwoPhase(Optimizer):
    """Sharpness-aware minimisation in two calls: the first moves the parameters, the second moves them back and steps."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.base = SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def first_step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old"] = parameter.detach().clone()
            parameter.add_(parameter.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.data = self.state[parameter]["old"]
        self.base.step()


@EVERY
def test_a_gradient_is_found_as_the_cause_with_a_two_phase_optimizer(every):
    model = net()
    optimizer = TwoPhase(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, every) as report:
        for _ in range(6):
            backward(model)
            optimizer.first_step()
            backward(model)
            optimizer.second_step()
    assert causes(report) == {"gradient"}
    assert report.notes == []


@EVERY
def test_hooks_of_other_code_and_a_nested_audit_do_not_change_a_cause(every):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: None)
    with audit(model, ["0"], optimizer, every) as outer:
        optimizer.register_step_post_hook(lambda *_: None)
        with audit(model, ["0"], optimizer, every) as inner:
            train(model, optimizer)
    assert causes(outer) == causes(inner) == {"gradient"}


def test_a_tensor_that_another_hook_puts_back_is_seen_moved_also_if_the_optimizer_was_not_given():
    model = net()
    optimizer, weight = SGD(model.parameters(), lr=0.1), model[0].weight
    before = weight.detach().clone()
    optimizer.register_step_post_hook(lambda *_: weight.data.copy_(before))
    with audit(model, ["0.weight"]) as report:
        train(model, optimizer)
    assert [row["verdict"] for row in report.rows if row["frozen"]] == ["returned"]


class RaisesOnce(SGD):
    """Raises in its second step."""

    calls = 0

    def step(self, closure=None):
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().step(closure)


@EVERY
def test_a_step_that_raises_is_not_counted_and_leaves_nothing_behind(every):
    model = net()
    optimizer = RaisesOnce(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, every) as report:
        for _ in range(6):
            backward(model)
            try:
                optimizer.step()
            except torch.OutOfMemoryError:
                continue
    assert report.looks == ([1, 2, 3, 4, 5] if every else [1, 2, 4, 5])
    assert causes(report) == {"gradient"}
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@EVERY
@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_write_by_hand_in_a_closure_is_an_outside_write(at, every):
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.LBFGS(model[2].parameters(), lr=0.1)

    def closure(number):
        if number >= at:
            with torch.no_grad():
                model[0].weight.add_(1)
        return backward(model)

    with audit(model, None, optimizer, every) as report:
        for number in range(6):
            optimizer.step(lambda number=number: closure(number))
    assert causes(report) == {"outside_write", ""}


def test_a_closure_that_raises_leaves_nothing_behind():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)

    def failing():
        raise RuntimeError

    with audit(model, None, optimizer) as report:
        train(model, optimizer, steps=2)
        with pytest.raises(RuntimeError):
            optimizer.step(failing)
        train(model, optimizer, steps=2)
    assert (report.looks, report.leaks) == ([1, 2, 4], [])


def test_each_of_many_optimizers_looks_at_its_own_tensors():
    model = net()
    optimizers = [SGD([parameter], lr=0.1) for parameter in model.parameters()]
    with audit(model, ["0"], optimizers) as report:
        train(model, *optimizers, steps=5)
    assert report.looks == [1, 2, 4, 5]
    assert causes(report) == {"gradient"}


def test_after_the_first_optimizer_is_replaced_tensors_of_no_optimizer_are_still_looked_at_and_steps_are_counted_on():
    model = net()
    model[0].requires_grad_(False)
    with audit(model, ["0"], every=1) as report:
        train(model, SGD(model[2].parameters(), lr=0.1), steps=3)
        later = SGD(model[2].parameters(), lr=0.1)
        train(model, later, steps=2)
        model[0].weight.data.add_(1)
        train(model, later, steps=2)
    assert causes(report) == {"outside_write", ""}
    assert report.looks == [1, 2, 3, 4, 5, 6, 7]


def test_the_optimizers_of_one_round_share_the_number_of_the_step():
    model = net()
    first, second = SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)
    with audit(model, ["0.weight"], every=1) as report:
        for _ in range(3):
            train(model, first, second, steps=1)
            train(model, first, steps=1)
    assert report.looks == [1, 2, 3, 4, 5, 6]


class RaisesAfterStep(SGD):
    """Raises OutOfMemoryError at the end of its third step."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        super().step(closure)
        if self.count == 3:
            raise torch.OutOfMemoryError("no memory")


@EVERY
def test_what_a_step_wrote_before_it_raised_was_not_written_by_other_code(every):
    model = net()
    model[0].requires_grad_(False)
    optimizer = RaisesAfterStep(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, every) as report:
        for number in range(6):
            model[0].requires_grad_(number == 2)
            model.zero_grad()
            model(X).square().mean().backward()
            with contextlib.suppress(torch.OutOfMemoryError):
                optimizer.step()
    assert causes(report) <= {"gradient", "unknown"}


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_new_optimizer_after_a_layer_was_replaced_begins_a_new_step(steps):
    model = net()
    with audit(model, ["0"], every=1) as report:
        train(model, SGD(model[2].parameters(), lr=0.1), steps=steps)
        model[0] = nn.Linear(4, 4)
        train(model, SGD(model.parameters(), lr=0.1), steps=4)
    assert report.looks == list(range(1, steps + 5))
    assert {row["seen_at"] for row in report.rows if row["frozen"]} == {steps + 1}


@EVERY
def test_a_forward_pass_after_the_last_step_that_writes_statistics_is_not_other_code(every):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["1"], optimizer, every, buffers="frozen") as report:
        train(model, optimizer)
        model.train()
        model(X)
    cause = {row["cause"] for row in report.rows if row["kind"] == "buffer"}
    assert cause == ({"forward_write"} if every else {"unknown"})


@pytest.mark.parametrize("optimizer", ["sgd", 5, [3]])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(ValueError, match=r"optimizer is a (str|int); give torch optimizers"), audit(net(), ["0"], optimizer):
        pass


@pytest.mark.parametrize("is_given", [True, False])
def test_an_optimizer_whose_learning_rate_is_none_is_audited(is_given):
    class WithoutRate(SGD):
        def step(self, closure=None):
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter -= 0.1 * parameter.grad

    model = net()
    optimizer = WithoutRate(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    with audit(model, ["0"], optimizer if is_given else None) as report:
        train(model, optimizer)
    assert causes(report) == {"gradient"}


def test_the_state_of_optimizers_that_were_replaced_is_not_kept_alive(collect_garbage):
    model = net()
    with audit(model, ["0"]) as report:
        made = []
        for _ in range(5):
            optimizer = Adam(model.parameters(), lr=0.1)
            made.append(weakref.ref(optimizer))
            train(model, optimizer, steps=2)
        del optimizer
        collect_garbage()
        assert [each() is None for each in made] == [True, True, True, True, False]
    assert causes(report) == {"gradient"}
    assert report.looks == list(range(1, 11))
    assert {row["group"] for row in report.rows} == {"0"}


def test_after_the_last_watched_step_no_optimizer_is_kept_alive(collect_garbage):
    model = net()
    with audit(model, ["0"], until=1):
        optimizer = Adam(model.parameters(), lr=0.1)
        train(model, optimizer, steps=2)
        made = weakref.ref(optimizer)
        del optimizer
        collect_garbage()
        assert made() is None


def test_an_optimizer_with_the_id_of_one_that_is_gone_is_seen():
    model, other = net(), net()
    with audit(model, ["0"]) as report:
        for _ in range(200):
            unrelated = SGD(other.parameters(), lr=0.1)
            train(other, unrelated, steps=1)
            gone = id(unrelated)
            del unrelated
            optimizer = SGD(model.parameters(), lr=0.1)
            if id(optimizer) == gone:
                break
        train(model, optimizer, steps=2)
    assert causes(report) == {"gradient"}


def test_a_hook_that_is_registered_in_the_last_watched_step_does_not_disturb_the_end():
    model, handles = net(), []
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(
        lambda *_: handles.append(torch_optimizer.register_optimizer_step_post_hook(lambda *_: None))
    )
    with audit(model, ["0"], optimizer, until=2):
        train(model, optimizer, steps=4)
    for handle in handles:
        handle.remove()
    assert not torch_optimizer._global_optimizer_post_hooks
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_a_frozen_tensor_that_was_made_in_inference_mode_is_audited():
    model = net()
    with torch.inference_mode():
        model.register_buffer("table", torch.ones(4))
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["table", "0"], optimizer) as report:
        train(model, optimizer, steps=3)
    assert report.leaks == ["0.weight", "0.bias"]
    assert causes(report) == {"gradient", ""}


def test_a_learning_rate_that_was_raised_before_a_later_freeze_was_not_raised_by_a_scheduler():
    model = net()
    optimizer = SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.1}])
    with audit(model, [], optimizer, every=1) as report:
        train(model, optimizer, steps=2)
        optimizer.param_groups[0]["lr"] = 0.1
        report.freeze(["0"])
        train(model, optimizer, steps=3)
    assert causes(report) == {"gradient"}


def test_another_optimizer_is_still_known_after_a_layer_and_its_new_optimizer_have_appeared():
    model = net()
    with audit(model, [], every=1) as report:
        train(model, SGD(model[0].parameters(), lr=0.1, momentum=0.9), steps=2)
        model.append(nn.Linear(2, 2))
        train(model, SGD(model[3].parameters(), lr=0.1), steps=2)
    groups = {row["name"]: row["group"] for row in report.rows}
    assert groups["0.weight"] != ""
    assert groups["3.weight"] != ""

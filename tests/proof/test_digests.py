"""An audit with `until`: what is watched up to that step, what is left after it, and what is found on leaving."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim import optimizer as torch_optimizer

from runner import audit, select
from runner.proof.changes import digest_of

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def train(model, *optimizers, steps=1):
    for _ in range(steps):
        model.zero_grad()
        model(X).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def row_of(report, name):
    return next(row for row in report.rows if row["name"] == name)


def hooks_on(optimizer):
    """Return how many hooks are on the optimizer and on all optimizers."""
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    shared = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
    return [len(hooks) for hooks in (*own, *shared)]


@pytest.mark.long
def test_after_the_last_watched_step_no_hook_and_no_copy_is_left():
    model = nn.Sequential(nn.Linear(4, 777), nn.Linear(777, 4))
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=2):
        train(model, optimizer)
        assert sum(hooks_on(optimizer)) == 3
        train(model, optimizer)
        assert hooks_on(optimizer) == [0, 0, 0, 0]
        model.zero_grad()
        gc.collect()
        assert sum(issubclass(type(each), Tensor) and each.shape == (777, 4) for each in gc.get_objects()) == 1
        train(model, optimizer)
    assert hooks_on(optimizer) == [0, 0, 0, 0]


def test_hooks_go_one_step_later_if_an_optimizer_of_an_earlier_round_did_not_step_in_the_last_one():
    model = net()
    often, seldom = SGD(model[2].parameters(), lr=0.1), SGD(model[0].parameters(), lr=0.1)
    with audit(model, optimizer=[often, seldom], until=2) as report:
        train(model, often, seldom)
        train(model, often)
        assert sum(hooks_on(often)) == 3
        train(model, often, seldom)
        assert hooks_on(often) == hooks_on(seldom) == [0, 0, 0, 0]
    assert report.looks == [1, 2]


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_a_row_is_as_of_the_last_watched_step_and_a_frozen_one_holds(steps):
    model, other = net(), net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=2) as report:
        train(model, optimizer, steps=steps)
    other_optimizer = SGD(other.parameters(), lr=0.1)
    with audit(other, optimizer=other_optimizer) as shorter:
        train(other, other_optimizer, steps=2)
    assert report.rows == shorter.rows
    assert {row["verdict"] for row in report.rows} == {"held", "trained"}
    assert report.looks == [1, 2]
    assert report.notes == []


def test_training_stays_the_same_to_the_last_bit():
    plain, watched = net(), net()
    optimizer = Adam(watched.parameters())
    plain_optimizer = Adam(plain.parameters())
    train(plain, plain_optimizer, steps=6)
    with audit(watched, optimizer=optimizer, until=3):
        train(watched, optimizer, steps=6)
    assert all(map(torch.equal, plain.state_dict().values(), watched.state_dict().values()))


def test_a_leak_after_the_last_watched_step_is_found_on_leaving_and_its_cause_is_unknown():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=2) as report:
        train(model, optimizer, steps=3)
        model[0].requires_grad_(True)
        train(model, optimizer, steps=2)
    row = row_of(report, "0.weight")
    assert (row["verdict"], row["cause"], row["moved"], row["seen_at"]) == ("leaked", "unknown", True, None)
    assert [row[key] for key in ("initial_l2", "change_l2", "change_rel", "change_max", "moved_elements")] == [None] * 5
    (note,) = report.notes
    assert note == "the cause is unknown for 0.weight and 0.bias: changed after step 2, the last watched"


def test_a_leak_before_the_last_watched_step_keeps_its_cause_and_norms():
    model = net()
    model[0].requires_grad_(True)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, until=3) as report:
        train(model, optimizer, steps=8)
    row = row_of(report, "0.weight")
    assert (row["verdict"], row["cause"], row["seen_at"]) == ("leaked", "gradient", 1)
    assert row["change_l2"] > 0


@pytest.mark.parametrize("equal", [True, False], ids=["equal bits", "other bits"])
def test_a_frozen_name_that_is_given_another_tensor_later_is_judged_by_that_tensor(equal):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=1) as report:
        train(model, optimizer, steps=2)
        new = nn.Linear(4, 4)
        if equal:
            new.load_state_dict(model[0].state_dict())
        model[0] = new
    assert row_of(report, "0.weight")["verdict"] == ("held" if equal else "leaked")


def test_a_frozen_tensor_that_moves_to_another_name_later_held():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=1) as report:
        train(model, optimizer, steps=2)
        model[0] = nn.Sequential(model[0])
    assert row_of(report, "0.weight")["verdict"] == "held"


def test_tensors_can_be_thawed_and_frozen_after_the_last_watched_step():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=1) as report:
        train(model, optimizer, steps=2)
        report.unfreeze(["0"])
        report.freeze(["2.bias"])
        model[2].bias.requires_grad_(False)
        model[0].requires_grad_(True)
        train(model, optimizer, steps=2)
    assert {name: row_of(report, name)["verdict"] for name in ("0.weight", "0.bias", "2.bias")} == {
        "0.weight": "held",
        "0.bias": "held",
        "2.bias": "held",
    }
    assert row_of(report, "2.bias")["frozen"]


def test_flags_that_froze_something_after_the_last_watched_step_are_sound_and_a_foreign_selection_is_refused():
    model = net().requires_grad_(True)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=1) as report:
        train(model, optimizer, steps=2)
        model[0].requires_grad_(False)
        optimizer.zero_grad()
        report.freeze(["0"])
        with pytest.raises(ValueError, match="no tensor of this Selection is in the model"):
            report.freeze(select(nn.Linear(4, 4), ["**"]))
    report.raise_if_unsound()


def test_a_leak_before_thawing_is_a_leak_after_the_last_watched_step_too():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=1) as report:
        train(model, optimizer, steps=2)
        model[0].bias.data.add_(1)
        report.unfreeze(["0"])
    assert report.leaks == ["0.bias"]


def test_an_audit_that_is_left_before_its_last_watched_step_is_an_ordinary_one():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=50) as report:
        train(model, optimizer, steps=3)
        model[0].bias.data.add_(1)
    assert report.looks == [1, 2, 3]
    assert row_of(report, "0.bias")["cause"] == "outside_write"


def test_another_hook_of_the_user_on_all_optimizers_does_not_disturb_the_end():
    model, calls = net(), []
    optimizer = SGD(model.parameters(), lr=0.1)
    handle = torch_optimizer.register_optimizer_step_post_hook(lambda *_: calls.append(1))
    with audit(model, optimizer=optimizer, until=2):
        late = torch_optimizer.register_optimizer_step_post_hook(lambda *_: calls.append(2))
        train(model, optimizer, steps=4)
    handle.remove()
    late.remove()
    assert calls == [1, 2] * 4
    assert hooks_on(optimizer) == [0, 0, 0, 0]


@pytest.mark.parametrize("until", [0, -1, 1.5, True, "8"])
def test_until_is_a_number_of_steps(until):
    with pytest.raises(ValueError, match=f"until is {until!r}"), audit(net(), until=until):
        pass


def test_a_digest_depends_on_bits_shape_and_dtype_and_not_on_the_layout():
    tensor = torch.randn(2, 3, 4, 5)
    assert digest_of(tensor) == digest_of(tensor.contiguous(memory_format=torch.channels_last))
    assert digest_of(torch.zeros(3)) != digest_of(-torch.zeros(3))
    assert digest_of(torch.zeros(6)) != digest_of(torch.zeros(2, 3))
    assert digest_of(torch.zeros(4)) != digest_of(torch.zeros(4, dtype=torch.int32))
    assert digest_of(torch.tensor(float("nan"))) == digest_of(torch.tensor(float("nan")))


def test_a_digest_leaves_the_memory_of_a_tensor_resizable():
    tensor = torch.zeros(1000, 3)
    digest_of(tensor)
    tensor.untyped_storage().resize_(0)
    assert digest_of(tensor) != digest_of(torch.zeros(1000, 3))


def test_an_audit_that_is_told_to_stop_compares_what_is_done_afterwards_by_digests():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        train(model, optimizer, steps=3)
        report.stop()
        report.stop()
        model[0].weight.data = model[0].weight.data.clone()
        model[0].bias.data.add_(1)
    assert (report.looks, report.leaks) == ([1, 2, 3], ["0.bias"])
    assert report.notes[-1].endswith("changed after step 3, the last watched")
    with pytest.raises(RuntimeError, match="the audit has ended"):
        report.stop()

"""The audit as a tool: thawing, buffers, several models, what a person reads, and what is raised."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from runner import audit, select
from runner.proof.audit_report import LeakError, UnsoundError

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), nn.Linear(4, 2))


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def row_of(report, name):
    return next(row for row in report.rows if row["name"] == name)


# Thawing


def test_a_tensor_that_is_thawed_and_trained_held_while_it_was_frozen_with_the_norms_of_the_whole_block():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    with audit(model, optimizer=optimizer) as report:
        train(model, optimizer, steps=3)
        model[0].requires_grad_(True)
        report.unfreeze(["0"])
        train(model, optimizer, steps=3)
    row = row_of(report, "0.weight")
    assert (row["frozen"], row["verdict"], row["cause"], row["moved"]) == (True, "held", "", True)
    assert row["change_l2"] == pytest.approx((model[0].weight - before).norm().item())
    assert row["moved_elements"] == (model[0].weight != before).sum()
    assert report.leaks == []


def test_a_leak_in_a_frozen_span_stays_a_leak_after_thawing_with_its_cause_and_step():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["0.weight"], optimizer) as report:
        train(model, optimizer, steps=3)
        report.unfreeze(["0.weight"])
        train(model, optimizer, steps=3)
    row = row_of(report, "0.weight")
    assert (row["verdict"], row["cause"], row["seen_at"]) == ("leaked", "gradient", 1)


def test_the_worst_of_several_frozen_spans_decides():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["0.weight", "0.bias"], optimizer, every=1) as report:
        model[0].requires_grad_(False)
        train(model, optimizer, steps=2)
        report.unfreeze(["0"])
        model[0].requires_grad_(True)
        train(model, optimizer, steps=2)
        report.freeze(["0"])
        model[0].bias.requires_grad_(False)
        optimizer.zero_grad()
        train(model, optimizer, steps=2)
    assert (row_of(report, "0.weight")["verdict"], row_of(report, "0.weight")["cause"]) == ("leaked", "gradient")
    assert row_of(report, "0.weight")["seen_at"] == 5
    assert row_of(report, "0.bias")["verdict"] == "held"


def test_a_write_just_before_thawing_belongs_to_the_frozen_span():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        train(model, optimizer, steps=3)
        model[0].bias.data.add_(1)
        report.unfreeze(["0"])
    assert (row_of(report, "0.bias")["verdict"], row_of(report, "0.bias")["cause"]) == ("leaked", "outside_write")
    assert row_of(report, "0.weight")["verdict"] == "held"


def test_what_is_not_frozen_cannot_be_thawed():
    with (
        audit(net(), ["0"]) as report,
        pytest.raises(ValueError, match=r"unfreeze: not declared frozen: 2.weight and 2.bias"),
    ):
        report.unfreeze(["2"])
    with pytest.raises(RuntimeError, match=r"report.unfreeze\(\) inside the with block"):
        report.unfreeze(["0"])


def test_thawing_one_of_two_tied_names_leaves_the_other_frozen():
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    with audit(model, ["a", "b"]) as report:
        report.unfreeze(select(model, ["b"]))
        model["a"].weight.data.add_(1)
    assert report.leaks == ["a.weight"]


def test_a_span_without_a_step_does_not_count():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        model[0].requires_grad_(True)
        report.unfreeze(["0"])
        train(model, optimizer)
        report.freeze(["2"])
        report.unfreeze(["2"])
        train(model, optimizer)
    assert {row["verdict"] for row in report.rows if row["kind"] == "parameter"} == {"trained"}


# Following the flags


def test_flags_that_are_followed_unfreeze_and_freeze_from_the_next_step_on():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        for step in range(1, 7):
            model[0].requires_grad_(step > 3)
            model[2].requires_grad_(step <= 5)
            report.follow_flags()
            train(model, optimizer)
    assert {name: row_of(report, name)["verdict"] for name in ("0.weight", "2.bias")} == {
        "0.weight": "held",
        "2.bias": "held",
    }
    assert row_of(report, "0.weight")["moved"]
    assert report.notes[:2] == [
        "from step 4 on, the flags declare trainable: 0.weight and 0.bias",
        "from step 6 on, the flags declare frozen: 2.weight and 2.bias",
    ]
    report.raise_if_unsound()


def test_a_write_to_a_tensor_that_the_flags_freeze_is_a_leak():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with audit(model, optimizer=optimizer) as report:
        train(model, optimizer, steps=2)
        model[0].requires_grad_(False)
        report.follow_flags()
        optimizer.zero_grad(set_to_none=False)
        model(X).square().mean().backward()
        optimizer.step()
    assert report.leaks == ["0.weight", "0.bias"]
    assert row_of(report, "0.bias")["cause"] == "optimizer_state"


@pytest.mark.parametrize("until", [None, 2])
def test_flags_are_followed_after_the_last_watched_step_too(until):
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=until) as report:
        for step in range(1, 7):
            model[0].requires_grad_(step > 4)
            report.follow_flags()
            train(model, optimizer)
    assert report.leaks == []
    since = "from step 5 on" if until is None else "after step 2"
    assert f"{since}, the flags declare trainable: 0.weight and 0.bias" in report.notes


@pytest.mark.parametrize("until", [None, 2])
def test_what_leaked_and_is_unfrozen_later_stays_a_leak(until):
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer, until=until) as report:
        train(model, optimizer)
        model[0].weight.data.add_(1)
        train(model, optimizer, steps=2)
        model[0].requires_grad_(True)
        report.follow_flags()
        train(model, optimizer)
    assert report.leaks == ["0.weight"]


@pytest.mark.parametrize("until", [None, 2])
def test_patterns_stay_and_a_trainable_parameter_that_loses_its_flag_is_refused(until):
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    with audit(model, ["0"], optimizer, until=until) as report:
        train(model, optimizer, steps=3)
        model[0].requires_grad_(True)
        report.follow_flags()
        model[0].requires_grad_(False)
        model[2].bias.requires_grad_(False)
        report.follow_flags()
        train(model, optimizer)
    since = "from step 4 on" if until is None else "after step 2"
    assert report.problems == [f"{since}, requires_grad is False though not declared frozen: 2.bias"]
    with pytest.raises(UnsoundError, match=r"requires_grad is False though not declared frozen: 2\.bias"):
        report.raise_if_unsound()


def test_a_training_in_which_every_flag_is_off_is_unsound():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        train(model, optimizer)
        model.requires_grad_(False)
        report.follow_flags()
    assert report.problems[-1] == "from step 2 on, no parameter has requires_grad=True"
    assert report.problems[-1] in str(report)


def test_flags_of_other_optimizers_are_ignored_where_a_gan_switches_them_off_for_a_moment():
    model = nn.ModuleDict({"maker": nn.Linear(4, 4), "critic": nn.Linear(4, 1)})
    optimizers = {name: SGD(part.parameters(), lr=0.1) for name, part in model.items()}
    with audit(model, optimizer=list(optimizers.values())) as report:
        for _ in range(3):
            for name, other in (("maker", "critic"), ("critic", "maker")):
                model[other].requires_grad_(False)
                model[name].requires_grad_(True)
                model["critic"](model["maker"](X)).mean().backward()
                report.follow_flags(ignored=model[other].parameters())
                optimizers[name].step()
                optimizers[name].zero_grad()
    assert {row["verdict"] for row in report.rows} == {"trained"}
    assert not report.not_training


@pytest.mark.parametrize("until", [None, 2])
def test_a_parameter_that_is_unfrozen_and_not_in_the_optimizer_does_not_train(until):
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    with audit(model, optimizer=optimizer, until=until) as report:
        train(model, optimizer, steps=3)
        model[0].requires_grad_(True)
        report.follow_flags(step=4)
        train(model, optimizer, steps=3)
    assert report.problems == ["unfrozen in mid-run, and unchanged since: 0.weight and 0.bias"]
    assert report.notes[0] == "from step 4 on, the flags declare trainable: 0.weight and 0.bias"


def test_a_parameter_that_is_unfrozen_without_effect_and_frozen_again_is_a_problem():
    def problems(is_stepped: bool, has_step: bool = True) -> list[str]:
        model = net()
        optimizer = SGD([*(model[0].parameters() if is_stepped else ()), *model[1:].parameters()], lr=0.1)
        with audit(model, ["0"], optimizer) as report:
            for is_frozen in (True, False, True):
                model[0].requires_grad_(not is_frozen)
                (report.freeze if is_frozen else report.unfreeze)(["0"])
                train(model, optimizer, steps=2 if is_frozen or has_step else 0)
        return report.problems

    said = "unfrozen, unchanged, and frozen again: 0.weight (not_in_optimizer) and 0.bias (not_in_optimizer)"
    assert problems(is_stepped=False) == [said]
    assert problems(is_stepped=True) == problems(is_stepped=False, has_step=False) == []


def test_flags_that_change_every_step_are_told_in_few_notes():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        for step in range(20):
            model[0].requires_grad_(step % 2 == 0)
            report.follow_flags()
            train(model, optimizer)
    assert len(report.notes) == 5
    assert report.notes[-1] == "the flags changed again later"


def test_flags_that_patterns_do_not_declare_and_that_change_every_step_are_told_in_few_problems():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    with audit(model, ["0"], optimizer=optimizer) as report:
        for step in range(20):
            model[2].weight.requires_grad_(step % 2 == 0)
            report.follow_flags()
            train(model, optimizer)
    assert len(report.problems) == 5
    assert report.problems[-1] == "the flags changed again later"


@pytest.mark.parametrize("until", [None, 3])
def test_layers_that_are_trained_in_turn_are_no_failure_though_each_was_frozen_at_times(until):
    model = net()
    model[1] = nn.Identity()
    optimizer = SGD(model.parameters(), lr=0.1)
    model[2].requires_grad_(False)
    with audit(model, optimizer=optimizer, until=until) as report:
        for step in range(8):
            model[0].requires_grad_(step % 2 == 0)
            model[2].requires_grad_(step % 2 == 1)
            report.follow_flags()
            train(model, optimizer)
    assert {row["verdict"] for row in report.rows} == {"held"}
    assert report.problems == []


@pytest.mark.parametrize("until", [None, 2])
@pytest.mark.parametrize("freezes_again", [True, False])
def test_a_layer_that_is_unfrozen_and_trained_after_the_last_watched_step_is_said_to_have_moved(until, freezes_again):
    model = net().requires_grad_(False)
    model[0].requires_grad_(True)
    optimizer = SGD(model.parameters(), lr=0.0)
    with audit(model, optimizer=optimizer, until=until) as report:
        train(model, optimizer, steps=3)
        optimizer.param_groups[0]["lr"] = 0.1
        for trained in (2, 0) if freezes_again else (2,):
            model.requires_grad_(False)
            model[trained].requires_grad_(True)
            report.follow_flags()
            train(model, optimizer)
    row = row_of(report, "2.weight")
    assert (row["verdict"], row["moved"], row["change_l2"] is None) == ("held", True, until is not None)
    assert report.problems == []


def test_a_layer_that_appears_is_declared_frozen_by_freeze_and_not_by_its_flag():
    for is_declared in (True, False):
        model = net()
        model[0].requires_grad_(False)
        optimizer = SGD(model[2].parameters(), lr=0.1, momentum=0.9)
        with audit(model) as report:
            model.append(nn.Linear(2, 2))
            optimizer.add_param_group({"params": model[3].parameters()})
            train(model, optimizer)
            model[3].requires_grad_(False)
            report.follow_flags()
            if is_declared:
                report.freeze(["3"])
            for _ in range(2):
                optimizer.zero_grad(set_to_none=False)
                optimizer.step()
        assert report.leaks == (["3.weight", "3.bias"] if is_declared else [])


def test_problems_can_be_read_once_the_last_watched_step_has_been_made():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, until=2) as report:
        train(model, optimizer)
        with pytest.raises(RuntimeError, match="has not ended"):
            report.raise_if_unsound()
        train(model, optimizer)
        assert report.steps == 2
        with pytest.raises(UnsoundError, match=r"0\.weight \(gradient\)"):
            report.raise_if_unsound()


# Buffers


def test_buffers_of_frozen_modules_are_declared_with_buffers_frozen():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["1"], optimizer, buffers="frozen", every=1) as report:
        train(model, optimizer, steps=2)
    assert "1.1.running_mean" in report.leaks
    assert row_of(report, "1.1.running_mean")["cause"] == "forward_write"


def test_with_flags_the_buffers_of_modules_that_are_frozen_as_a_whole_are_declared_with_buffers_frozen():
    model = net()
    model[1].requires_grad_(False).eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, None, optimizer, buffers="frozen") as report:
        train(model, optimizer)
    row = row_of(report, "1.1.running_mean")
    assert (row["frozen"], row["verdict"]) == (True, "held")
    with pytest.raises(ValueError, match="buffers is 'dead'; give live or frozen"), audit(model, buffers="dead"):
        pass


# Several models


def test_names_of_several_models_begin_with_their_keys():
    policy, reference = net(), net()
    optimizer = SGD(policy.parameters(), lr=0.1)
    with audit({"policy": policy, "reference": reference}, ["reference", "policy.2"], optimizer) as report:
        train(policy, optimizer, steps=2)
    assert report.leaks == ["policy.2.weight", "policy.2.bias"]
    assert row_of(report, "reference.0.weight")["verdict"] == "held"
    assert row_of(report, "policy.0.weight")["verdict"] == "trained"


def test_a_selection_of_one_of_several_models_is_found_by_identity():
    policy, reference = net(), net()
    with audit({"policy": policy, "reference": reference}, select(reference, ["0"])) as report:
        reference[0].weight.data.add_(1)
        policy[0].weight.data.add_(1)
    assert report.leaks == ["reference.0.weight"]


@pytest.mark.parametrize("model", [{}, {"a": 1}, {"a.b": nn.Linear(1, 1)}, {1: nn.Linear(1, 1)}, [nn.Linear(1, 1)], None])
def test_what_is_no_model_is_refused_in_one_line(model):
    with pytest.raises(ValueError, match=r"^model[^\n]*give a [^\n]*$"), audit(model):
        pass


# What a person reads


def test_the_text_of_a_report_has_less_than_ten_lines_and_names_what_leaked_and_why():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    model[0].requires_grad = False
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["0", "1"], optimizer) as report:
        assert str(report).count("\n") == 0
        train(model, optimizer, steps=20)
    lines = str(report).splitlines()
    assert len(lines) < 10
    assert lines[0] == "LEAKED: 4 leaked, 8 trained"
    assert lines[1] == "leaked: 0.weight (gradient), 0.bias (gradient), 1.weight (gradient) and 1.bias (gradient)"
    assert "bits compared after steps 1, 2, 4, 8, 16 and 20" in lines
    assert repr(report) == str(report)


def test_the_text_of_a_report_with_many_notes_says_how_many_are_left_out():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)])
    for layer in model:
        layer.requires_grad = False
    with audit(model, ["0"]) as report:
        pass
    assert len(str(report).splitlines()) == 9
    assert str(report).endswith("more notes: see report.notes")


# What is raised


def test_a_sound_training_raises_nothing():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        train(model, optimizer, steps=2)
    report.raise_if_unsound()


def test_a_leak_and_an_idle_parameter_are_raised_with_names_and_causes():
    model = net()
    optimizer = SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    with audit(model, ["0.weight"], optimizer) as report:
        train(model, optimizer, steps=2)
    with pytest.raises(UnsoundError) as raised:
        report.raise_if_unsound()
    assert str(raised.value) == (
        "1 frozen tensor leaked: 0.weight (gradient); "
        "2 trainable parameters did not change: 1.1.weight (not_in_optimizer), 1.1.bias (not_in_optimizer)"
    )
    assert isinstance(raised.value, AssertionError)


def test_a_training_that_trained_nothing_is_unsound():
    model = net().requires_grad_(False)
    with audit(model) as report:
        pass
    with pytest.raises(UnsoundError, match="no parameter was trained"):
        report.raise_if_unsound()


def test_flags_that_froze_nothing_are_unsound_and_patterns_that_declare_nothing_are_a_choice():
    for frozen, problem in ((None, "nothing was frozen"), ([], None)):
        model = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        with audit(model, frozen, optimizer) as report:
            train(model, optimizer, steps=2)
        if problem is None:
            report.raise_if_unsound()
        else:
            with pytest.raises(UnsoundError, match=problem):
                report.raise_if_unsound()


def test_flags_that_froze_something_in_the_block_are_sound():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, None, optimizer) as report:
        train(model, optimizer, steps=2)
        model[0].requires_grad_(False)
        report.freeze(["0"])
        train(model, optimizer, steps=2)
    report.raise_if_unsound()


def test_raise_at_look_stops_the_loop_at_the_step_after_which_the_leak_is_seen():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    audited = audit(model, ["0.weight"], optimizer, raise_at_look=True)
    report = audited.__enter__()
    with pytest.raises(LeakError, match=r"^1 frozen tensor found changed after step 1: 0.weight \(gradient\)$") as raised:
        train(model, optimizer, steps=5)
    assert not audited.__exit__(LeakError, raised.value, None)
    assert report.looks == [1]
    assert report.leaks == ["0.weight"]
    assert not optimizer._optimizer_step_post_hooks


def test_raise_at_look_raises_on_leaving_if_the_leak_is_found_there():
    model = net()
    with pytest.raises(LeakError, match=r"0\.weight"), audit(model, ["0"], raise_at_look=True):
        model[0].weight.data.add_(1)


def test_raise_at_look_does_not_hide_an_exception_of_the_loop():
    model = net()

    def loop():
        with audit(model, ["0"], raise_at_look=True):
            model[0].weight.data.add_(1)
            raise KeyError

    with pytest.raises(KeyError):
        loop()


# Steps


def test_a_row_says_after_which_step_other_bits_were_first_seen():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, optimizer=optimizer) as report:
        train(model, optimizer, steps=5)
        model[0].weight.data.add_(1)
        train(model, optimizer, steps=4)
    seen = {name: row_of(report, name)["seen_at"] for name in ("0.weight", "0.bias", "2.weight")}
    assert seen == {"0.weight": 8, "0.bias": None, "2.weight": 1}

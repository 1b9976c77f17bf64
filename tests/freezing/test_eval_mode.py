"""Modules held in eval mode: nothing moves them out of it, and nothing is left behind."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from runner.freezing.eval_mode import hold_in_eval_mode
from runner.freezing.selection import select
from runner.tensors import same_bits


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.BatchNorm1d(4), nn.Dropout(0.5)
    )


def held(model: nn.Module, undo: ExitStack, *patterns: str, keep: tuple[str, ...] = ()) -> None:
    hold_in_eval_mode(select(model, patterns, keep, buffers="frozen"), undo)


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def batch() -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_statistics_of_what_is_held_stay_to_the_bit_while_all_others_move():
    model = net()
    before = buffers(model)
    with ExitStack() as undo:
        held(model, undo, "0")
        for _ in range(3):
            model.train()
            model(batch())
        moved = {name for name, buffer in model.named_buffers() if not same_bits(before[name], buffer)}
        assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_batchnorm_normalises_by_its_running_statistics_and_dropout_passes_everything_through():
    model = net()
    expected = copy.deepcopy(model[0]).eval()(batch())
    with ExitStack() as undo:
        held(model, undo, "0")
        model.train()
        assert torch.equal(model[0](batch()), expected)


@pytest.mark.parametrize("call", ["train", "eval", "train(True)", "train(False)", "child", "alone"])
def test_no_call_of_train_moves_what_is_held_and_all_others_follow(call):
    model = net()
    with ExitStack() as undo:
        held(model, undo, "0")
        training = call in ("train", "train(True)")
        if call == "child":
            model.eval()
            model[0].train()
        elif call == "alone":
            model.eval()
            model[0][1].train()
        else:
            model.train() if call == "train" else model.eval() if call == "eval" else model.train(training)
        assert modes(model) == {
            "": training,
            "0": False,
            "0.0": False,
            "0.1": False,
            "0.2": False,
            "1": training,
            "2": training,
        }


def test_what_a_keep_entry_exempts_follows_train_inside_a_module_that_is_held():
    model = net()
    with ExitStack() as undo:
        held(model, undo, "**", keep=("0.1", "2"))
        model.train()
        assert [name for name, training in modes(model).items() if training] == ["0.1", "2"]
        model.eval()
        assert not any(modes(model).values())


def test_train_still_returns_the_module():
    model = net()
    with ExitStack() as undo:
        held(model, undo, "**")
        assert model.train() is model
        assert model[0].train() is model[0]
        assert model.eval() is model


@pytest.mark.parametrize("start", ["training", "inference", "mixed"])
@pytest.mark.parametrize("patterns", [["**"], ["0"], ["0.1", "2"], []], ids=str)
def test_undoing_restores_every_mode_and_leaves_no_attribute(start, patterns):
    model = net().train(start != "inference")
    if start == "mixed":
        model[0][1].eval()
        model[2].eval()
    before, attributes = modes(model), {name: sorted(vars(module)) for name, module in model.named_modules()}
    with ExitStack() as undo:
        held(model, undo, *patterns)
    assert modes(model) == before
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    model.train()
    assert all(modes(model).values())


def test_an_exception_undoes_it_too():
    model = net()

    def fail() -> None:
        with ExitStack() as undo:
            held(model, undo, "**")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert all(modes(model).values())
    assert "train" not in vars(model[0])


def test_a_selection_with_live_buffers_holds_nothing():
    model = net()
    with ExitStack() as undo:
        hold_in_eval_mode(select(model, ["**"]), undo)
        assert all(modes(model).values())
        assert "train" not in vars(model)


def test_a_deep_copy_of_a_held_model_is_held_by_itself():
    model = net()
    with ExitStack() as undo:
        held(model, undo, "0")
        twin = copy.deepcopy(model)
        model.eval()
        twin.train()
        assert not any(modes(model).values())
        assert [name for name, training in modes(twin).items() if training] == ["", "1", "2"]
        assert twin[0].train() is twin[0]
    before = buffers(model)
    twin.train()
    twin(batch())
    assert all(same_bits(before[name], buffer) for name, buffer in model.named_buffers())
    assert not twin[0][1].training
    assert model[0][1].training


def test_a_module_under_two_names_is_held_once_and_restored():
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared)
    with ExitStack() as undo:
        held(model, undo, "2")
        model.train()
        assert not shared.training
        assert model[1].training
    assert shared.training
    assert "train" not in vars(shared)


def test_a_second_hold_inside_the_first_leaves_the_first_in_place():
    model = net()
    with ExitStack() as outer:
        held(model, outer, "0")
        with ExitStack() as inner:
            held(model, inner, "**")
            model.train()
            assert not any(modes(model).values())
        model.train()
        assert [name for name, training in modes(model).items() if training] == ["", "1", "2"]
    assert all(modes(model).values())


def test_a_module_with_a_train_of_its_own_still_has_it_called():
    class Counting(nn.Dropout):
        calls = 0

        def train(self, mode: bool = True) -> nn.Module:
            self.calls += 1
            return super().train(mode)

    model = nn.Sequential(Counting(0.5))
    with ExitStack() as undo:
        held(model, undo, "0")
        calls = model[0].calls
        model.train()
        assert model[0].calls == calls + 1
        assert not model[0].training
        assert torch.equal(model(torch.ones(50)), torch.ones(50))


def test_a_module_whose_train_was_replaced_by_hand_is_held_too_and_gets_it_back():
    model = net()
    own = vars(model[1])["train"] = lambda mode=True: model[1]  # a common way to pin a module, here while it trains
    before = buffers(model)
    with ExitStack() as undo:
        held(model, undo, "1")
        model.train()
        model(batch())
        assert same_bits(before["1.running_mean"], model[1].running_mean)
    assert vars(model[1])["train"] is own
    assert model[1].training


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_what_is_held_inside_a_wrapper_stays_when_the_wrapper_calls_train(wrap):
    model = net()
    wrapped = wrap(model)
    with ExitStack() as undo:
        held(wrapped, undo, "0")
        wrapped.train()
        assert [name for name, training in modes(model).items() if training] == ["", "1", "2"]
    assert all(modes(model).values())
    assert wrapped.training

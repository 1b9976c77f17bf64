"""Modules in forced eval mode: `train()` does not change them, and everything is restored afterwards."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from runner.freezing.eval_mode import force_eval_mode
from runner.freezing.selection import select
from runner.tensors import same_bits


def net() -> nn.Sequential:
    """Return a model with the modules `0` (`0.0` linear, `0.1` BatchNorm, `0.2` dropout), `1` (BatchNorm), `2` (dropout)."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.BatchNorm1d(4), nn.Dropout(0.5)
    )


def force_modules(model: nn.Module, undo: ExitStack, *patterns: str, keep: tuple[str, ...] = ()) -> None:
    """Force the modules that the patterns match into eval mode, until `undo` is closed."""
    force_eval_mode(select(model, patterns, keep, buffers="frozen"), undo)


def modes(model: nn.Module) -> dict[str, bool]:
    """Return by module name whether the module is in training mode."""
    return {name: module.training for name, module in model.named_modules()}


def batch() -> torch.Tensor:
    """Return eight samples; always the same."""
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of each buffer by name."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_only_the_statistics_of_selected_batchnorms_do_not_change():
    model = net()
    before = buffers(model)
    with ExitStack() as undo:
        force_modules(model, undo, "0")
        for _ in range(3):
            model.train()
            model(batch())
        moved = {name for name, buffer in model.named_buffers() if not same_bits(before[name], buffer)}
        assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_in_forced_eval_mode_batchnorm_uses_its_running_statistics_and_dropout_is_off():
    model = net()
    expected = copy.deepcopy(model[0]).eval()(batch())
    with ExitStack() as undo:
        force_modules(model, undo, "0")
        model.train()
        assert torch.equal(model[0](batch()), expected)


@pytest.mark.parametrize("call", ["train", "eval", "train(True)", "train(False)", "child", "alone"])
def test_train_and_eval_do_not_change_selected_modules_but_all_others(call):
    model = net()
    with ExitStack() as undo:
        force_modules(model, undo, "0")
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


def test_an_exempt_child_of_a_selected_module_follows_train():
    model = net()
    with ExitStack() as undo:
        force_modules(model, undo, "**", keep=("0.1", "2"))
        model.train()
        assert [name for name, training in modes(model).items() if training] == ["0.1", "2"]
        model.eval()
        assert not any(modes(model).values())


def test_train_still_returns_the_module():
    model = net()
    with ExitStack() as undo:
        force_modules(model, undo, "**")
        assert model.train() is model
        assert model[0].train() is model[0]
        assert model.eval() is model


@pytest.mark.parametrize("start", ["training", "inference", "mixed"])
@pytest.mark.parametrize("patterns", [["**"], ["0"], ["0.1", "2"], []], ids=str)
def test_undo_restores_every_mode_and_removes_the_replaced_train(start, patterns):
    model = net().train(start != "inference")
    if start == "mixed":
        model[0][1].eval()
        model[2].eval()
    before, attributes = modes(model), {name: sorted(vars(module)) for name, module in model.named_modules()}
    with ExitStack() as undo:
        force_modules(model, undo, *patterns)
    assert modes(model) == before
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    model.train()
    assert all(modes(model).values())


def test_after_an_exception_the_modes_are_restored():
    model = net()

    def fail() -> None:
        with ExitStack() as undo:
            force_modules(model, undo, "**")
            raise RuntimeError("inside the block")

    with pytest.raises(RuntimeError, match="inside the block"):
        fail()
    assert all(modes(model).values())
    assert "train" not in vars(model[0])


def test_a_selection_with_live_buffers_forces_no_module():
    model = net()
    with ExitStack() as undo:
        force_eval_mode(select(model, ["**"]), undo)
        assert all(modes(model).values())
        assert "train" not in vars(model)


def test_a_deep_copy_forces_its_own_modules():
    model = net()
    with ExitStack() as undo:
        force_modules(model, undo, "0")
        copied = copy.deepcopy(model)
        model.eval()
        copied.train()
        assert not any(modes(model).values())
        assert [name for name, training in modes(copied).items() if training] == ["", "1", "2"]
        assert copied[0].train() is copied[0]
    before = buffers(model)
    copied.train()
    copied(batch())
    assert all(same_bits(before[name], buffer) for name, buffer in model.named_buffers())
    assert not copied[0][1].training
    assert model[0][1].training


def test_a_module_under_two_names_is_changed_and_restored_once():
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared)
    with ExitStack() as undo:
        force_modules(model, undo, "2")
        model.train()
        assert not shared.training
        assert model[1].training
    assert shared.training
    assert "train" not in vars(shared)


def test_undoing_an_inner_call_does_not_undo_the_outer_one():
    model = net()
    with ExitStack() as outer:
        force_modules(model, outer, "0")
        with ExitStack() as inner:
            force_modules(model, inner, "**")
            model.train()
            assert not any(modes(model).values())
        model.train()
        assert [name for name, training in modes(model).items() if training] == ["", "1", "2"]
    assert all(modes(model).values())


def test_a_train_method_that_a_class_overrides_is_still_called():
    class Counting(nn.Dropout):
        calls = 0

        def train(self, mode: bool = True) -> nn.Module:
            self.calls += 1
            return super().train(mode)

    model = nn.Sequential(Counting(0.5))
    with ExitStack() as undo:
        force_modules(model, undo, "0")
        calls = model[0].calls
        model.train()
        assert model[0].calls == calls + 1
        assert not model[0].training
        assert torch.equal(model(torch.ones(50)), torch.ones(50))


def test_a_train_that_the_user_replaced_on_an_instance_is_overridden_and_restored():
    model = net()
    users_train = vars(model[1])["train"] = lambda mode=True: model[1]  # a common way to pin a module, here while it trains
    before = buffers(model)
    with ExitStack() as undo:
        force_modules(model, undo, "1")
        model.train()
        model(batch())
        assert same_bits(before["1.running_mean"], model[1].running_mean)
    assert vars(model[1])["train"] is users_train
    assert model[1].training


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_selected_modules_in_a_wrapper_stay_in_eval_mode_when_the_wrapper_calls_train(wrap):
    model = net()
    wrapped = wrap(model)
    with ExitStack() as undo:
        force_modules(wrapped, undo, "0")
        wrapped.train()
        assert [name for name, training in modes(model).items() if training] == ["", "1", "2"]
    assert all(modes(model).values())
    assert wrapped.training

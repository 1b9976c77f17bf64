"""What stays frozen of a Selection where only some of its parameters do."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from runner.freezing.eval_mode import force_eval_mode
from runner.freezing.phases.blocks import selected_blocks
from runner.freezing.phases.restriction import restricted
from runner.freezing.selection import Selection, select, select_by_flags
from runner.freezing.words import FOR_CONFIG
from runner.training.models import MLP


def stage() -> nn.Sequential:
    """Return a linear layer, BatchNorm with and without parameters, and dropout."""
    return nn.Sequential(
        OrderedDict(fc=nn.Linear(2, 2), bn=nn.BatchNorm1d(2), plain=nn.BatchNorm1d(2, affine=False), drop=nn.Dropout())
    )


def net() -> nn.Sequential:
    """Return a model of two stages, dropout, BatchNorm without parameters, and a head."""
    outer = OrderedDict(a=stage(), b=stage(), drop=nn.Dropout(), plain=nn.BatchNorm1d(2, affine=False), head=nn.Linear(2, 2))
    return nn.Sequential(outer)


def backbone(model: nn.Module) -> Selection:
    """Return a Selection of all but the head of a model, with its modules in eval mode."""
    return select(model, ["**"], ["head"], "frozen")


def within(selection: Selection, *prefixes: str) -> set[str]:
    """Return the names of the selected parameters that begin so."""
    return {name for name in selection.parameters if name.startswith(prefixes)}


MODELS = {
    "net": (net, ["**"], ["head"]),
    "resnet18": (resnet18, ["**"], ["fc"]),
    "biases": (net, ["**.bias"], []),
    "a buffer": (net, ["a.bn.running_mean", "b", "plain"], []),
    "tied": (lambda: MLP([3]), ["back"], []),
}


@pytest.mark.parametrize("buffers", ["live", "frozen"])
@pytest.mark.parametrize("name", MODELS)
def test_with_all_parameters_the_selection_is_the_same_but_for_its_notes(name, buffers):
    build, patterns, keep = MODELS[name]
    model = build()
    selection = select(model, patterns, keep, buffers, words=FOR_CONFIG)
    assert restricted(selection, model, selection.parameters.keys()) == replace(selection, notes=())


@pytest.mark.parametrize("buffers", ["live", "frozen"])
@pytest.mark.parametrize("name", MODELS)
def test_restricting_twice_is_restricting_once(name, buffers):
    build, patterns, keep = MODELS[name]
    model = build()
    selection = select(model, patterns, keep, buffers)
    names = list(selection.parameters)
    half, quarter = {*names[: len(names) // 2]}, {*names[: len(names) // 4]}
    assert restricted(restricted(selection, model, half), model, quarter).parameters.keys() == quarter
    assert restricted(restricted(selection, model, half), model, half) == restricted(selection, model, half)


def test_only_the_named_parameters_stay_frozen():
    model = net()
    selection = select(model, ["**"], ["head"])
    result = restricted(selection, model, within(selection, "a."))
    assert {*result.parameters} == within(selection, "a.")
    assert model.a.fc.weight in result
    assert model.b.fc.weight not in result
    assert (result.buffers, result.modules) == ({}, {})
    assert result.evidence is selection.evidence


def test_modules_stay_in_eval_mode_and_their_buffers_frozen_where_all_parameters_in_them_stay_frozen():
    model = net()
    selection = backbone(model)
    result = restricted(selection, model, within(selection, "a.", "b.fc."))
    assert {*selection.modules} == {"", "a", "b", "drop", "plain", *(f"{each}.{name}" for each in "ab" for name, _ in STAGE)}
    assert {*result.modules} == {"a", "a.fc", "a.bn", "a.plain", "a.drop", "b.fc"}
    assert {*result.buffers} == {name for name in selection.buffers if name.startswith("a.")}


STAGE = [*stage().named_children()]


def test_a_module_without_selected_parameters_follows_the_smallest_module_around_it_that_has_some():
    model = net()
    selection = backbone(model)
    without_bias = selection.parameters.keys() - {"b.bn.bias"}
    assert "b.plain" not in restricted(selection, model, without_bias).modules
    assert "a.plain" in restricted(selection, model, without_bias).modules
    assert not {"plain", "drop"} & {*restricted(selection, model, without_bias).modules}  # around them is the model
    assert {"plain", "drop"} <= {*restricted(selection, model, selection.parameters.keys()).modules}


def test_a_module_of_which_no_parameter_is_selected_follows_what_is_around_it_too():
    model = net()
    selection = select(model, ["a", "b"], ["b.bn.weight", "b.bn.bias"], "frozen")
    assert "b.bn" in selection.modules
    assert "b.bn" in restricted(selection, model, within(selection, "b.fc")).modules
    assert "b.bn" not in restricted(selection, model, within(selection, "a.", "b.fc.weight")).modules


def test_a_buffer_that_a_pattern_names_stays_frozen_as_long_as_what_is_selected_of_its_module():
    model = net()
    selection = select(model, ["a", "b.bn", "a.bn.running_mean", "b.plain.running_var"])
    assert {*selection.buffers} == {"a.bn.running_mean", "b.plain.running_var"}
    assert {*restricted(selection, model, within(selection, "a.bn")).buffers} == {"a.bn.running_mean"}
    assert {*restricted(selection, model, within(selection, "b.bn")).buffers} == {"b.plain.running_var"}  # `b` is around it
    assert {*restricted(selection, model, {"a.fc.weight"}).buffers} == set()


def test_a_selection_of_buffers_alone_stays_as_it_is():
    model = net()
    for buffers in ("live", "frozen"):
        selection = select(model, ["a.plain"], (), buffers)
        assert selection.buffers
        assert restricted(selection, model, set()) == selection


def test_declared_names_stay_where_a_frozen_tensor_stands():
    model = MLP([3])
    selection = select(model, ["back", "body"])
    assert selection.names == {"back.weight", "back.bias", "body.weight", "body.bias"}
    assert restricted(selection, model, {"there.weight"}).names == {"back.weight"}
    assert restricted(selection, model, {"back.bias", "body.bias"}).names == {"back.bias", "body.bias"}
    assert restricted(selection, model, set()).names == frozenset()
    model = net()
    selection = backbone(model)
    result = restricted(selection, model, within(selection, "a."))
    assert result.names == {*result.parameters, *result.buffers}


def test_a_module_with_a_tied_tensor_that_trains_does_not_stay_in_eval_mode():
    model = MLP([3])
    selection = select(model, ["there", "back"], (), "frozen")
    assert {*restricted(selection, model, {"there.bias", "back.bias"}).modules} == set()
    assert {*restricted(selection, model, {"there.weight", "back.bias"}).modules} == {"back"}


def test_a_module_that_is_registered_twice_stays_in_eval_mode_only_if_it_would_at_both_places():
    plain = nn.BatchNorm1d(2, affine=False)
    model = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Linear(2, 2), plain),
            "b": nn.Sequential(nn.Linear(2, 2), plain),
            "c": nn.Sequential(nn.Linear(2, 2)),
        }
    )
    selection = select(model, ["a", "b", "c"], (), "frozen")
    assert {"a.1", "b.1"} <= {*selection.modules}
    both = restricted(selection, model, within(selection, "a.", "b."))
    assert ({"a.1", "b.1"} <= {*both.modules}, "a.1.running_mean" in both.buffers) == (True, True)
    one = restricted(selection, model, within(selection, "a.", "c."))
    assert {"a.1", "b.1"} & {*one.modules} == set()
    assert one.buffers == {}


def test_flags_and_reasons_are_kept():
    model = net()
    model.a.requires_grad_(False)
    model.b.requires_grad_(False)
    selection = select_by_flags(model, "frozen")
    result = restricted(selection, model, within(selection, "a."))
    assert result.names == frozenset()  # which means all names
    assert {*result.modules} == {"a", *(f"a.{name}" for name, _ in STAGE)}
    selection = select(model.head, ["@as_built"])
    assert restricted(selection, model.head, set()).nothing_frozen == selection.nothing_frozen != ""


def obvious(selection: Selection, model: nn.Module, names: set[str]) -> tuple[set[str], set[str]]:
    """Return the names of the modules and buffers that stay frozen, by a look into each module; none has two names."""
    modules, ids = dict(model.named_modules()), {id(each): name for name, each in selection.parameters.items()}

    def stays(module: str) -> bool:
        selected = [ids[id(each)] for each in modules[module].parameters() if id(each) in ids]
        return stays(module.rpartition(".")[0]) if module and not selected else names.issuperset(selected)

    return {each for each in selection.modules if stays(each)}, {
        each for each in selection.buffers if stays(each.rpartition(".")[0])
    }


@pytest.mark.parametrize("name", ["net", "biases", "a buffer", "tied"])
def test_what_stays_is_what_a_look_into_each_module_finds(name):
    build, patterns, keep = MODELS[name]
    model = build()
    selection = select(model, patterns, keep, "frozen")
    for names in (set(each) for count in (0, 1, 2, 5) for each in combinations(selection.parameters, count)):
        result = restricted(selection, model, names)
        assert ({*result.modules}, {*result.buffers}) == obvious(selection, model, names)
        assert {*result.parameters} == names


def test_the_buffers_of_a_resnet_hold_in_the_stages_that_stay_frozen_and_move_in_the_others():
    torch.manual_seed(0)
    model = resnet18()
    selection = select(model, ["**"], ["fc"], "frozen")
    blocks = selected_blocks(model, selection)
    frozen = {*blocks["conv1..bn1"], *blocks["layer1"]}
    result = restricted(selection, model, frozen)
    before = {name: each.clone() for name, each in model.named_buffers()}
    with ExitStack() as undo:
        force_eval_mode(result, undo)
        model.train()
        model(torch.randn(2, 3, 32, 32))
    moved = {name for name, each in model.named_buffers() if not torch.equal(each, before[name])}
    assert {*result.buffers} == {name for name in before if name.startswith(("bn1.", "layer1."))}
    assert moved == before.keys() - result.buffers.keys()

"""How parameters are cut into groups: each at most once, by name, with its rate."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from runner.errors import ConfigError
from runner.freezing.groups import (
    all_in_one,
    by_frozen,
    by_module,
    by_parameter,
    by_role,
    refined,
    regroup,
    with_lrs,
    without_empty,
)
from runner.freezing.selection import select
from runner.training.models import MLP

CHECKED = settings(max_examples=150, deadline=None, database=None, derandomize=True)
NOTHING: list[str] = []


@pytest.fixture(scope="module")
def resnet():
    return resnet18()


def named(model: nn.Module, groups: list[dict]) -> dict[str, list[str]]:
    """Each group's name and the names of its parameters."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: [name_of[id(parameter)] for parameter in group["params"]] for group in groups}


def names(model: nn.Module, *prefixes: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def rates(groups: list[dict]) -> dict[str, float | None]:
    return {group["name"]: group.get("lr") for group in groups}


# Cuts


def test_roles_are_frozen_and_trainable_in_the_order_of_the_model():
    model = MLP([3])
    frozen = names(model, "body", "there")
    trainable = [name for name in names(model, "") if name not in frozen]
    assert named(model, by_role(model, select(model, ["body", "there"]))) == {"frozen": frozen, "trainable": trainable}


def test_one_group_holds_everything_once_a_tied_parameter_too():
    model = MLP([3])
    assert named(model, all_in_one(model, select(model, NOTHING))) == {"all": names(model, "")}


def test_a_group_a_parameter_is_62_groups_for_resnet18_with_the_parameters_names(resnet):
    groups = by_parameter(resnet, select(resnet, ["fc"]))
    assert len(groups) == 62
    assert named(resnet, groups) == {name: [name] for name, _ in resnet.named_parameters()}


def test_a_group_a_parameter_has_one_for_a_tied_pair():
    model = MLP([3])
    assert [group["name"] for group in by_parameter(model, select(model, NOTHING))] == names(model, "")


def test_a_group_a_module_holds_what_its_pattern_matches_and_nothing_else_is_in_a_group(resnet):
    groups = by_module(resnet, select(resnet, NOTHING), ["conv1", "fc"])
    assert named(resnet, groups) == {"conv1": ["conv1.weight"], "fc": ["fc.weight", "fc.bias"]}


def test_of_two_modules_names_that_match_the_first_wins(resnet):
    first = by_module(resnet, select(resnet, NOTHING), ["layer1.0", "layer1", "**.bias"])
    below = names(resnet, "layer1.0")
    assert named(resnet, first) == {
        "layer1.0": below,
        "layer1": [name for name in names(resnet, "layer1") if name not in below],
        "**.bias": [name for name in names(resnet, "") if name.endswith(".bias") and not name.startswith("layer1.")],
    }
    assert named(resnet, by_module(resnet, select(resnet, NOTHING), ["layer1", "layer1.0"]))["layer1.0"] == []


def test_groups_names_take_every_kind_of_pattern_and_the_models_head():
    model = MLP([3])
    groups = by_module(model, select(model, NOTHING, head="body"), ["@head", "type:BatchNorm1d", r"re:back\..*"])
    assert named(model, groups) == {
        "@head": ["body.weight", "body.bias"],
        "type:BatchNorm1d": ["norm.weight", "norm.bias"],
        r"re:back\..*": ["there.weight", "back.bias"],
    }


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (partial(by_module, names=["fc", "conv2"]), ["groups.names", "'conv2'", "did you mean", "conv1"]),
        (partial(by_module, names=["FC"]), ["groups.names", "fc"]),
        (partial(by_module, names=["fc."]), ["groups.names", "empty part"]),
        (partial(by_module, names=[]), ["groups.names"]),
        (by_module, ["groups.names"]),
        (lambda model, selection: with_lrs([], model, selection, [("fcc", 0.1)]), ["groups.lr", "'fcc'", "fc"]),
        (lambda model, selection: with_lrs([], model, selection, [("fc", 0.1), ("relu", 0.1)]), ["groups.lr", "relu"]),
        (lambda model, selection: with_lrs([], model, selection, [("", 0.1)]), ["groups.lr"]),
    ],
)
def test_a_pattern_of_groups_that_matches_nothing_is_refused_under_its_key_with_the_nearest_names(resnet, cut, said):
    with pytest.raises(ConfigError) as caught:
        cut(resnet, select(resnet, NOTHING))
    assert [part for part in said if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


# Rates


def test_a_group_with_two_rates_becomes_name_slash_pattern_and_name_for_the_rest():
    model = MLP([3])
    selection = select(model, NOTHING)
    groups = with_lrs(all_in_one(model, selection), model, selection, [("head", 0.5), ("**.bias", 0.25)])
    biases = [name for name in names(model, "") if name.endswith("bias") and name != "head.bias"]
    rest = [name for name in names(model, "") if name.endswith("weight") and name != "head.weight"]
    assert named(model, groups) == {"all/head": names(model, "head"), "all/**.bias": biases, "all": rest}
    assert rates(groups) == {"all/head": 0.5, "all/**.bias": 0.25, "all": None}


def test_of_two_rates_that_match_the_first_wins():
    model = MLP([3])
    selection = select(model, NOTHING)
    groups = with_lrs(
        by_parameter(model, selection), model, selection, [("head.bias", 1.0), ("head", 2.0), ("**.bias", 3.0)]
    )
    found = rates(groups)
    assert (found["head.bias"], found["head.weight"], found["body.bias"], found["body.weight"]) == (1.0, 2.0, 3.0, None)


def test_a_group_whose_parameters_take_one_rate_keeps_its_name():
    model = MLP([3])
    selection = select(model, ["head"])
    groups = with_lrs(by_role(model, selection), model, selection, [("head", 0.5)])
    assert rates(groups) == {"frozen": 0.5, "trainable": None}


def test_without_rates_the_groups_stay_as_they_are():
    model = MLP([3])
    selection = select(model, ["head"])
    assert with_lrs(by_role(model, selection), model, selection, []) == by_role(model, selection)


def test_a_rate_for_one_name_of_a_tied_parameter_is_its_rate():
    model = MLP([3])
    selection = select(model, NOTHING)
    groups = with_lrs(by_parameter(model, selection), model, selection, [("back.weight", 0.5)])
    assert rates(groups)["there.weight"] == 0.5


def test_a_rate_of_zero_is_a_rate():
    model = MLP([3])
    selection = select(model, NOTHING)
    assert rates(with_lrs(all_in_one(model, selection), model, selection, [("head", 0.0)]))["all/head"] == 0.0


# Roles


def test_a_half_frozen_group_becomes_name_and_name_slash_frozen():
    model = MLP([3])
    selection = select(model, ["body", "head.bias"])
    groups = by_frozen(by_module(model, selection, ["body", "head", "norm"]), selection, lr=0.0)
    assert named(model, groups) == {
        "body": names(model, "body"),
        "head": ["head.weight"],
        "head/frozen": ["head.bias"],
        "norm": names(model, "norm"),
    }
    assert rates(groups) == {"body": 0.0, "head": None, "head/frozen": 0.0, "norm": None}


def test_what_the_method_sets_for_frozen_groups_beats_groups_lr():
    model = MLP([3])
    selection = select(model, ["**"], keep=["@head"])
    groups = by_frozen(with_lrs(all_in_one(model, selection), model, selection, [("**.bias", 0.5)]), selection, lr=0.0)
    assert rates(groups) == {"all": None, "all/frozen": 0.0, "all/**.bias": 0.5, "all/**.bias/frozen": 0.0}


def test_splitting_keeps_a_groups_other_options_and_leaves_the_groups_it_was_given():
    model = MLP([3])
    selection = select(model, ["body"])
    given = [{**group, "weight_decay": 0.1, "lr": 0.3} for group in all_in_one(model, selection)]
    before = [{**group, "params": list(group["params"])} for group in given]
    cut = by_frozen(with_lrs(given, model, selection, [("head", 0.5)]), selection, lr=0.0, weight_decay=0)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in cut} == {
        "all": (0.3, 0.1),
        "all/frozen": (0.0, 0),
        "all/head": (0.5, 0.1),
    }
    assert given == before


# Empty groups


@pytest.mark.parametrize(
    ("patterns", "kept"), [(["head"], ["frozen", "trainable"]), (["**"], ["frozen"]), (NOTHING, ["trainable"])], ids=str
)
def test_empty_groups_are_dropped(patterns, kept):
    model = MLP([3])
    assert [group["name"] for group in without_empty(by_role(model, select(model, patterns)))] == kept


def test_where_all_groups_are_empty_all_stay():
    model = nn.Sequential(nn.ReLU())
    groups = by_role(model, select(model, NOTHING))
    assert without_empty(groups) == groups == [{"name": "frozen", "params": []}, {"name": "trainable", "params": []}]


def test_an_empty_group_survives_every_cut_with_its_name():
    model = MLP([3])
    selection = select(model, ["**"])
    groups = by_frozen(with_lrs(by_role(model, selection), model, selection, [("head", 0.5)]), selection, lr=0.0)
    assert {group["name"] for group in groups} == {"frozen", "frozen/head", "trainable"}


def test_without_a_parameter_a_group_a_parameter_is_one_empty_group():
    model = nn.Sequential(nn.ReLU())
    assert by_parameter(model, select(model, NOTHING)) == [{"name": "all", "params": []}]


# Cut so that a later freeze takes no group apart


def without_frozen(groups: list[dict], selection) -> list[dict]:
    """What a method leaves that hands nothing frozen to the optimizer."""
    return [{**group, "params": [p for p in group["params"] if p not in selection]} for group in groups]


def test_refining_by_the_same_groups_changes_nothing():
    model = MLP([3])
    groups = by_role(model, select(model, ["head"]))
    assert refined(groups, groups) == groups


def test_a_group_that_will_be_split_is_split_under_the_names_to_come_with_the_options_of_now():
    model = MLP([3])
    selection = select(model, ["body", "head.bias"])
    groups = [{**group, "lr": 0.3} for group in by_module(model, selection, ["body", "head", "norm"])]
    cut = refined(groups, by_frozen(groups, selection, lr=0.0))
    assert named(model, cut) == {
        "body": names(model, "body"),
        "head": ["head.weight"],
        "head/frozen": ["head.bias"],
        "norm": names(model, "norm"),
    }
    assert rates(cut) == dict.fromkeys(named(model, cut), 0.3)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (all_in_one, {"all/frozen": ["body.weight", "body.bias"], "all": None}),
        (by_role, {"frozen": ["body.weight", "body.bias"], "trainable": None}),
    ],
)
def test_what_will_be_left_out_is_a_group_of_its_own_named_as_what_is_frozen_is_elsewhere(cut, expected):
    model = MLP([3])
    selection = select(model, ["body"])
    groups = cut(model, selection)
    rest = [name for name in names(model, "") if not name.startswith("body")]
    found = named(model, refined(groups, without_frozen(groups, selection)))
    assert found == {name: members or rest for name, members in expected.items()}


def test_an_empty_group_stays_one_when_it_is_refined():
    groups = [{"name": "frozen", "params": []}]
    assert refined(groups, []) == groups


# Regrouping a running optimizer


def adamw(groups: list[dict]) -> torch.optim.AdamW:
    """After one step, so that every parameter has state."""
    optimizer = torch.optim.AdamW([dict(group) for group in groups], lr=0.1)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def moments(optimizer: torch.optim.Optimizer) -> dict[int, list[int]]:
    """The identities of what the state of each parameter holds."""
    return {id(parameter): list(map(id, state.values())) for parameter, state in optimizer.state.items()}


def test_regrouping_moves_parameters_between_the_groups_that_are_there_and_keeps_their_state():
    model = MLP([3])
    selection = select(model, ["body"])
    was = by_role(model, select(model, ["head"]))
    optimizer = adamw(was)
    live, state = list(optimizer.param_groups), moments(optimizer)
    regroup(optimizer, was, by_role(model, selection))
    assert [id(group) for group in optimizer.param_groups] == [id(group) for group in live]
    assert named(model, optimizer.param_groups) == named(model, by_role(model, selection))
    assert moments(optimizer) == state


def test_regrouping_sets_only_the_options_that_differ_from_before():
    model = MLP([3])
    selection = select(model, ["body"])
    was = [{**group, "lr": 0.3, "weight_decay": 0.5} for group in by_role(model, selection)]
    optimizer = adamw(was)
    for group in optimizer.param_groups:
        group["lr"] = 0.07  # as a scheduler sets it
    regroup(optimizer, was, by_frozen(was, selection, lr=0.0))
    assert rates(optimizer.param_groups) == {"frozen": 0.0, "trainable": 0.07}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_a_group_that_is_no_more_is_emptied_and_stays_for_a_scheduler_counts_it():
    model = MLP([3])
    selection = select(model, ["body"])
    was = refined(all_in_one(model, selection), without_frozen(all_in_one(model, selection), selection))
    optimizer = adamw(was)
    state = moments(optimizer)
    regroup(optimizer, was, without_frozen(all_in_one(model, selection), selection))
    rest = [name for name in names(model, "") if not name.startswith("body")]
    assert named(model, optimizer.param_groups) == {"all/frozen": [], "all": rest}
    assert moments(optimizer) == state


def test_regrouping_twice_goes_by_name_whatever_was_left_out_meanwhile():
    model = MLP([3])
    some, more = select(model, ["body"]), select(model, ["body", "norm"])
    start = refined(all_in_one(model, more), without_frozen(all_in_one(model, more), more))
    optimizer = adamw(start)
    first, then = (without_frozen(all_in_one(model, frozen), frozen) for frozen in (some, more))
    regroup(optimizer, start, first)
    assert named(model, optimizer.param_groups)["all"][0] == "norm.weight"
    regroup(optimizer, first, then)
    assert named(model, optimizer.param_groups) == {"all/frozen": [], "all": names(model, "there", "back", "head")}


def test_regrouping_to_what_is_there_leaves_even_the_lists_for_lbfgs_holds_on_to_its_own():
    model = MLP([3])
    groups = all_in_one(model, select(model, NOTHING))
    optimizer = torch.optim.LBFGS([dict(group) for group in groups])
    held = optimizer.param_groups[0]["params"]
    regroup(optimizer, groups, all_in_one(model, select(model, NOTHING)))
    assert optimizer.param_groups[0]["params"] is held


# All of it together

MODEL = MLP([3], width=4, classes=2)
PREFIXES = ["body", "norm", "there", "back", "head", "head.bias", "norm.weight", "back.weight", "there.weight", "body.bias"]
SOME = st.lists(st.sampled_from(PREFIXES), unique=True, max_size=4)


def covers(prefix: str, parameter: nn.Parameter) -> bool:
    """Slow and obvious: one of the parameter's names is the prefix or stands below it."""
    named = MODEL.named_parameters(remove_duplicate=False)
    return any(other is parameter and (name == prefix or name.startswith(f"{prefix}.")) for name, other in named)


@CHECKED
@given(SOME, SOME, st.sampled_from(["role", "one", "parameter", "module"]), st.lists(st.sampled_from(PREFIXES), min_size=1))
def test_each_parameter_is_in_at_most_one_group_of_one_role_with_the_first_rate_that_matches(frozen, lrs, cut, modules):
    selection = select(MODEL, frozen)
    cuts = {"role": by_role, "one": all_in_one, "parameter": by_parameter, "module": partial(by_module, names=modules)}
    rate_of = {pattern: 1.0 + number for number, pattern in enumerate(lrs)}
    try:
        groups = with_lrs(cuts[cut](MODEL, selection), MODEL, selection, list(rate_of.items()))
    except ConfigError:
        assert cut == "module"  # a rate for what `groups.names` leaves out
        return
    groups = without_empty(by_frozen(groups, selection, lr=0.0))
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = [p for p in MODEL.parameters() if cut != "module" or any(covers(name, p) for name in modules)]
    assert sorted(placed) == sorted(map(id, wanted))
    for group in groups:
        assert len({parameter in selection for parameter in group["params"]}) == 1
        for parameter in group["params"]:
            first = next((rate_of[pattern] for pattern in lrs if covers(pattern, parameter)), None)
            assert group.get("lr") == (0.0 if parameter in selection else first)
    assert len({group["name"] for group in groups}) == len(groups)
    assert [group["name"] for group in torch.optim.SGD(groups, lr=0.1).param_groups] == [g["name"] for g in groups]


@CHECKED
@given(SOME, SOME, st.sampled_from(["role", "one", "parameter"]), st.booleans())
def test_refining_parts_every_group_by_what_comes_and_regrouping_gives_what_came(frozen, lrs, cut, leaves_out):
    selection = select(MODEL, frozen)
    cuts = {"role": by_role, "one": all_in_one, "parameter": by_parameter}
    rate_of = [(pattern, 1.0 + number) for number, pattern in enumerate(lrs)]
    groups = with_lrs(cuts[cut](MODEL, selection), MODEL, selection, rate_of)
    later = without_frozen(groups, selection) if leaves_out else by_frozen(groups, selection, lr=0.0)
    start = refined(without_empty(groups), later)
    assert len({group["name"] for group in start}) == len(start)
    assert sorted(id(p) for group in start for p in group["params"]) == sorted(map(id, MODEL.parameters()))
    for group in start:
        members = set(map(id, group["params"]))
        assert any(members <= {id(p) for p in other["params"]} for other in groups)
        for other in later:
            assert members <= {id(p) for p in other["params"]} or not members & {id(p) for p in other["params"]}
    optimizer = torch.optim.SGD([dict(group) for group in start], lr=0.1)
    regroup(optimizer, start, later)
    found = {group["name"]: group for group in optimizer.param_groups}
    assert list(found) == [group["name"] for group in start]
    for group in later:
        if group["params"]:
            assert list(map(id, found[group["name"]]["params"])) == list(map(id, group["params"]))
            assert found[group["name"]]["lr"] == group.get("lr", 0.1)
    placed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert placed == {id(p) for group in later for p in group["params"]}

"""Parameter groups: each parameter in one group at most, with its learning rate, and regrouping during a run."""

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
    by_module,
    by_parameter,
    by_role,
    drop_empty_groups,
    in_all_groups,
    regroup,
    set_apart,
    split_by_block,
    split_by_frozen,
    split_by_lr,
    split_for_later,
    union_of_groups,
)
from runner.freezing.selection import select
from runner.training.models import MLP

CHECKED = settings(max_examples=150, deadline=None, database=None, derandomize=True)
NOTHING: list[str] = []


@pytest.fixture(scope="module")
def resnet():
    """Return a resnet18, shared by the tests of this file."""
    return resnet18()


def names_by_group(model: nn.Module, groups: list[dict]) -> dict[str, list[str]]:
    """Return the names of the parameters in each group, by group name."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: [name_of[id(parameter)] for parameter in group["params"]] for group in groups}


def names(model: nn.Module, *prefixes: str) -> list[str]:
    """Return the names of the parameters that begin with one of the prefixes."""
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def lr_by_group(groups: list[dict]) -> dict[str, float | None]:
    """Return the learning rate of each group by group name, None for a group without one."""
    return {group["name"]: group.get("lr") for group in groups}


# Dividing parameters into groups


def test_by_role_has_the_groups_frozen_and_trainable_in_the_order_of_the_model():
    model = MLP([3])
    frozen = names(model, "body", "there")
    trainable = [name for name in names(model, "") if name not in frozen]
    assert names_by_group(model, by_role(model, select(model, ["body", "there"]))) == {
        "frozen": frozen,
        "trainable": trainable,
    }


def test_all_in_one_contains_every_parameter_once_also_tied_ones():
    model = MLP([3])
    assert names_by_group(model, all_in_one(model, select(model, NOTHING))) == {"all": names(model, "")}


def test_by_parameter_gives_resnet18_62_groups_with_the_names_of_the_parameters(resnet):
    groups = by_parameter(resnet, select(resnet, ["fc"]))
    assert len(groups) == 62
    assert names_by_group(resnet, groups) == {name: [name] for name, _ in resnet.named_parameters()}


def test_by_parameter_has_one_group_for_two_tied_parameters():
    model = MLP([3])
    assert [group["name"] for group in by_parameter(model, select(model, NOTHING))] == names(model, "")


def test_by_module_has_only_groups_of_the_parameters_that_the_patterns_match(resnet):
    groups = by_module(resnet, select(resnet, NOTHING), ["conv1", "fc"])
    assert names_by_group(resnet, groups) == {"conv1": ["conv1.weight"], "fc": ["fc.weight", "fc.bias"]}


def test_by_module_puts_a_parameter_in_the_group_of_the_first_pattern_that_matches(resnet):
    groups = by_module(resnet, select(resnet, NOTHING), ["layer1.0", "layer1", "**.bias"])
    names_in_block = names(resnet, "layer1.0")
    assert names_by_group(resnet, groups) == {
        "layer1.0": names_in_block,
        "layer1": [name for name in names(resnet, "layer1") if name not in names_in_block],
        "**.bias": [name for name in names(resnet, "") if name.endswith(".bias") and not name.startswith("layer1.")],
    }
    assert names_by_group(resnet, by_module(resnet, select(resnet, NOTHING), ["layer1", "layer1.0"]))["layer1.0"] == []


def test_by_module_takes_every_kind_of_pattern_and_the_head():
    model = MLP([3])
    groups = by_module(model, select(model, NOTHING, head="body"), ["@head", "type:BatchNorm1d", r"re:back\..*"])
    assert names_by_group(model, groups) == {
        "@head": ["body.weight", "body.bias"],
        "type:BatchNorm1d": ["norm.weight", "norm.bias"],
        r"re:back\..*": ["there.weight", "back.bias"],
    }


@pytest.mark.parametrize(
    ("groups_by", "expected_texts"),
    [
        (partial(by_module, names=["fc", "conv2"]), ["groups.names", "'conv2'", "did you mean", "conv1"]),
        (partial(by_module, names=["FC"]), ["groups.names", "fc"]),
        (partial(by_module, names=["fc."]), ["groups.names", "empty part"]),
        (partial(by_module, names=[]), ["groups.names"]),
        (by_module, ["groups.names"]),
        (lambda model, selection: split_by_lr([], model, selection, [("fcc", 0.1)]), ["groups.lr", "'fcc'", "fc"]),
        (lambda model, selection: split_by_lr([], model, selection, [("fc", 0.1), ("relu", 0.1)]), ["groups.lr", "relu"]),
        (lambda model, selection: split_by_lr([], model, selection, [("", 0.1)]), ["groups.lr"]),
    ],
)
def test_the_message_for_a_group_pattern_without_a_match_has_its_key_and_similar_names(resnet, groups_by, expected_texts):
    with pytest.raises(ConfigError) as caught:
        groups_by(resnet, select(resnet, NOTHING))
    assert [part for part in expected_texts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


# Learning rates


def test_a_group_with_several_learning_rates_is_split_and_the_parts_are_named_after_the_patterns():
    model = MLP([3])
    selection = select(model, NOTHING)
    groups = split_by_lr(all_in_one(model, selection), model, selection, [("head", 0.5), ("**.bias", 0.25)])
    biases = [name for name in names(model, "") if name.endswith("bias") and name != "head.bias"]
    other_names = [name for name in names(model, "") if name.endswith("weight") and name != "head.weight"]
    assert names_by_group(model, groups) == {"all/head": names(model, "head"), "all/**.bias": biases, "all": other_names}
    assert lr_by_group(groups) == {"all/head": 0.5, "all/**.bias": 0.25, "all": None}


def test_the_learning_rate_of_the_first_pattern_that_matches_counts():
    model = MLP([3])
    selection = select(model, NOTHING)
    groups = split_by_lr(
        by_parameter(model, selection), model, selection, [("head.bias", 1.0), ("head", 2.0), ("**.bias", 3.0)]
    )
    found = lr_by_group(groups)
    assert (found["head.bias"], found["head.weight"], found["body.bias"], found["body.weight"]) == (1.0, 2.0, 3.0, None)


def test_a_group_with_one_learning_rate_keeps_its_name():
    model = MLP([3])
    selection = select(model, ["head"])
    groups = split_by_lr(by_role(model, selection), model, selection, [("head", 0.5)])
    assert lr_by_group(groups) == {"frozen": 0.5, "trainable": None}


def test_without_learning_rates_the_groups_do_not_change():
    model = MLP([3])
    selection = select(model, ["head"])
    assert split_by_lr(by_role(model, selection), model, selection, []) == by_role(model, selection)


def test_a_learning_rate_can_be_given_for_any_name_of_a_tied_parameter():
    model = MLP([3])
    selection = select(model, NOTHING)
    groups = split_by_lr(by_parameter(model, selection), model, selection, [("back.weight", 0.5)])
    assert lr_by_group(groups)["there.weight"] == 0.5


def test_a_learning_rate_can_be_0():
    model = MLP([3])
    selection = select(model, NOTHING)
    assert lr_by_group(split_by_lr(all_in_one(model, selection), model, selection, [("head", 0.0)]))["all/head"] == 0.0


# Splitting into frozen and trainable


def test_a_partly_frozen_group_is_split_into_name_and_name_slash_frozen():
    model = MLP([3])
    selection = select(model, ["body", "head.bias"])
    groups = split_by_frozen(by_module(model, selection, ["body", "head", "norm"]), selection, lr=0.0)
    assert names_by_group(model, groups) == {
        "body": names(model, "body"),
        "head": ["head.weight"],
        "head/frozen": ["head.bias"],
        "norm": names(model, "norm"),
    }
    assert lr_by_group(groups) == {"body": 0.0, "head": None, "head/frozen": 0.0, "norm": None}


def test_the_methods_learning_rate_for_frozen_groups_overrides_groups_lr():
    model = MLP([3])
    selection = select(model, ["**"], keep=["@head"])
    groups = split_by_frozen(
        split_by_lr(all_in_one(model, selection), model, selection, [("**.bias", 0.5)]), selection, lr=0.0
    )
    assert lr_by_group(groups) == {"all": None, "all/frozen": 0.0, "all/**.bias": 0.5, "all/**.bias/frozen": 0.0}


def test_splitting_keeps_other_options_and_does_not_change_its_input():
    model = MLP([3])
    selection = select(model, ["body"])
    original = [{**group, "weight_decay": 0.1, "lr": 0.3} for group in all_in_one(model, selection)]
    before = [{**group, "params": list(group["params"])} for group in original]
    result = split_by_frozen(split_by_lr(original, model, selection, [("head", 0.5)]), selection, lr=0.0, weight_decay=0)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in result} == {
        "all": (0.3, 0.1),
        "all/frozen": (0.0, 0),
        "all/head": (0.5, 0.1),
    }
    assert original == before


# Empty groups


@pytest.mark.parametrize(
    ("patterns", "names"), [(["head"], ["frozen", "trainable"]), (["**"], ["frozen"]), (NOTHING, ["trainable"])], ids=str
)
def test_empty_groups_are_dropped(patterns, names):
    model = MLP([3])
    assert [group["name"] for group in drop_empty_groups(by_role(model, select(model, patterns)))] == names


def test_if_all_groups_are_empty_none_is_dropped():
    model = nn.Sequential(nn.ReLU())
    groups = by_role(model, select(model, NOTHING))
    assert drop_empty_groups(groups) == groups == [{"name": "frozen", "params": []}, {"name": "trainable", "params": []}]


def test_splitting_keeps_an_empty_group_and_its_name():
    model = MLP([3])
    selection = select(model, ["**"])
    groups = split_by_frozen(split_by_lr(by_role(model, selection), model, selection, [("head", 0.5)]), selection, lr=0.0)
    assert {group["name"] for group in groups} == {"frozen", "frozen/head", "trainable"}


def test_by_parameter_has_one_empty_group_if_the_model_has_no_parameters():
    model = nn.Sequential(nn.ReLU())
    assert by_parameter(model, select(model, NOTHING)) == [{"name": "all", "params": []}]


# Splitting groups in advance for a later phase


def exclude_frozen(groups: list[dict], selection) -> list[dict]:
    """Return the groups without frozen parameters, as `exclude` does."""
    return [{**group, "params": [p for p in group["params"] if p not in selection]} for group in groups]


def test_split_for_later_with_the_same_groups_changes_nothing():
    model = MLP([3])
    groups = by_role(model, select(model, ["head"]))
    assert split_for_later(groups, groups) == groups


def test_split_for_later_uses_the_names_of_the_later_groups_and_keeps_the_current_options():
    model = MLP([3])
    selection = select(model, ["body", "head.bias"])
    groups = [{**group, "lr": 0.3} for group in by_module(model, selection, ["body", "head", "norm"])]
    result = split_for_later(groups, split_by_frozen(groups, selection, lr=0.0))
    assert names_by_group(model, result) == {
        "body": names(model, "body"),
        "head": ["head.weight"],
        "head/frozen": ["head.bias"],
        "norm": names(model, "norm"),
    }
    assert lr_by_group(result) == dict.fromkeys(names_by_group(model, result), 0.3)


@pytest.mark.parametrize(
    ("groups_by", "expected"),
    [
        (all_in_one, {"all/frozen": ["body.weight", "body.bias"], "all": None}),
        (by_role, {"frozen": ["body.weight", "body.bias"], "trainable": None}),
    ],
)
def test_parameters_that_a_later_phase_excludes_get_a_group_named_as_those_of_other_methods(groups_by, expected):
    model = MLP([3])
    selection = select(model, ["body"])
    groups = groups_by(model, selection)
    other_names = [name for name in names(model, "") if not name.startswith("body")]
    found = names_by_group(model, split_for_later(groups, exclude_frozen(groups, selection)))
    assert found == {name: members or other_names for name, members in expected.items()}


def test_split_for_later_keeps_an_empty_group():
    groups = [{"name": "frozen", "params": []}]
    assert split_for_later(groups, []) == groups


# Regrouping a running optimizer


def adamw(groups: list[dict]) -> torch.optim.AdamW:
    """Return an optimizer after one step, so that every parameter has state."""
    optimizer = torch.optim.AdamW([dict(group) for group in groups], lr=0.1)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def state_ids(optimizer: torch.optim.Optimizer) -> dict[int, list[int]]:
    """Return the ids of the tensors in each parameter's state, by the id of the parameter."""
    return {id(parameter): list(map(id, state.values())) for parameter, state in optimizer.state.items()}


def test_regroup_moves_parameters_between_existing_groups_and_keeps_their_state():
    model = MLP([3])
    selection = select(model, ["body"])
    old_groups = by_role(model, select(model, ["head"]))
    optimizer = adamw(old_groups)
    groups, state = list(optimizer.param_groups), state_ids(optimizer)
    regroup(optimizer, old_groups, by_role(model, selection))
    assert [id(group) for group in optimizer.param_groups] == [id(group) for group in groups]
    assert names_by_group(model, optimizer.param_groups) == names_by_group(model, by_role(model, selection))
    assert state_ids(optimizer) == state


def test_regroup_sets_only_options_that_differ_between_the_phases():
    model = MLP([3])
    selection = select(model, ["body"])
    old_groups = [{**group, "lr": 0.3, "weight_decay": 0.5} for group in by_role(model, selection)]
    optimizer = adamw(old_groups)
    for group in optimizer.param_groups:
        group["lr"] = 0.07  # as a scheduler sets it
    regroup(optimizer, old_groups, split_by_frozen(old_groups, selection, lr=0.0))
    assert lr_by_group(optimizer.param_groups) == {"frozen": 0.0, "trainable": 0.07}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_a_group_that_the_next_phase_lacks_is_emptied_but_stays_because_schedulers_count_groups():
    model = MLP([3])
    selection = select(model, ["body"])
    old_groups = split_for_later(all_in_one(model, selection), exclude_frozen(all_in_one(model, selection), selection))
    optimizer = adamw(old_groups)
    state = state_ids(optimizer)
    regroup(optimizer, old_groups, exclude_frozen(all_in_one(model, selection), selection))
    other_names = [name for name in names(model, "") if not name.startswith("body")]
    assert names_by_group(model, optimizer.param_groups) == {"all/frozen": [], "all": other_names}
    assert state_ids(optimizer) == state


def test_regroup_twice_works_although_parameters_were_excluded_in_between():
    model = MLP([3])
    body, body_and_norm = select(model, ["body"]), select(model, ["body", "norm"])
    all_groups = all_in_one(model, body)
    start = split_for_later(all_groups, exclude_frozen(all_groups, body_and_norm))
    optimizer = adamw(start)
    first, second = (exclude_frozen(all_groups, frozen) for frozen in (body, body_and_norm))
    regroup(optimizer, start, first)
    assert names_by_group(model, optimizer.param_groups)["all"][0] == "norm.weight"
    regroup(optimizer, first, second)
    assert names_by_group(model, optimizer.param_groups) == {"all/frozen": [], "all": names(model, "there", "back", "head")}


def test_regroup_without_a_change_keeps_the_params_lists_because_lbfgs_stores_a_reference():
    model = MLP([3])
    groups = all_in_one(model, select(model, NOTHING))
    optimizer = torch.optim.LBFGS([dict(group) for group in groups])
    params = optimizer.param_groups[0]["params"]
    regroup(optimizer, groups, all_in_one(model, select(model, NOTHING)))
    assert optimizer.param_groups[0]["params"] is params


def test_regroup_moves_parameters_also_where_a_group_has_as_many_as_before():
    one, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"name": "a", "params": [one]}, {"name": "b", "params": [other]}], lr=0.1)
    regroup(
        optimizer,
        [{"name": "a", "params": [one]}, {"name": "b", "params": [other]}],
        [{"name": "a", "params": [other]}, {"name": "b", "params": [one]}],
    )
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [[id(other)], [id(one)]]


def test_regroup_sets_the_options_of_a_group_to_be_reset_when_it_gets_its_first_parameters_and_not_again():
    one, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    before = [{"name": "a/frozen", "params": [], "lr": 0.0}, {"name": "b/frozen", "params": [other], "lr": 0.0}]
    after = [{**before[0], "params": [one]}, before[1]]
    optimizer = torch.optim.SGD([dict(group) for group in before], lr=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.07  # as a scheduler raises it
    regroup(optimizer, before, after, reset={"a/frozen", "b/frozen"})
    assert lr_by_group(optimizer.param_groups) == {"a/frozen": 0.0, "b/frozen": 0.07}
    optimizer.param_groups[0]["lr"] = 0.07
    regroup(optimizer, after, after, reset={"a/frozen", "b/frozen"})
    assert lr_by_group(optimizer.param_groups) == {"a/frozen": 0.07, "b/frozen": 0.07}


# Groups of a run that freezes and thaws


def group(name: str, *numbers: int, **options: float) -> dict:
    """Return a group whose parameters are numbers."""
    return {"name": name, "params": list(numbers), **options}


def test_a_group_with_other_options_than_declared_has_a_name_of_its_own():
    declared = [group("a", 1, 2), group("b", 3, lr=0.5), group("c", 4, lr=0.0)]
    assert set_apart([group("a", 1, 2, lr=0.0), group("b", 3, lr=0.5), group("c", 4, lr=0.0)], declared) == [
        group("a/frozen", 1, 2, lr=0.0),
        group("b", 3, lr=0.5),
        group("c", 4, lr=0.0),
    ]
    assert set_apart([group("a/frozen", 1, lr=0.0), group("a", 2)], declared) == [
        group("a/frozen", 1, lr=0.0),
        group("a", 2),
    ]


def test_groups_are_split_by_block_and_what_is_in_none_keeps_the_name():
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(4)]
    block_of = {id(parameters[0]): "x", id(parameters[1]): "y", id(parameters[3]): "x"}
    groups = [{"name": "a", "params": parameters[:3], "lr": 0.5}, {"name": "b", "params": parameters[3:]}]
    found = [(each["name"], [*map(id, each["params"])], each.get("lr")) for each in split_by_block(groups, block_of)]
    one, two, three, four = map(id, parameters)
    assert found == [("a/x", [one], 0.5), ("a/y", [two], 0.5), ("a", [three], 0.5), ("b", [four], None)]
    assert split_by_block(groups, {}) == groups


def test_the_union_has_every_group_that_ever_has_parameters_with_those_of_the_first_phase():
    first = [group("a", 1), group("b"), group("never")]
    later = [[group("a"), group("b", 1, lr=0.1)], [group("b", 1, lr=0.2), group("c", 2, lr=0.3)]]
    assert union_of_groups(first, later) == [group("a", 1), group("b"), group("c", lr=0.3)]
    assert union_of_groups([group("a", 1)], later) == [group("a", 1), group("b", lr=0.1), group("c", lr=0.3)]
    assert union_of_groups([group("a"), group("b")], [[group("a")]]) == [group("a"), group("b")]


def test_the_groups_of_a_phase_stand_in_the_order_of_all_and_those_that_it_lacks_are_empty():
    everything = [group("a", 1, lr=0.1), group("b", 2), group("c", 3)]
    assert in_all_groups([group("c", 1), group("a", 2, lr=0.5)], everything) == [
        group("a", 2, lr=0.5),
        group("b"),
        group("c", 1),
    ]
    with pytest.raises(AssertionError, match="the optimizer has no group d, which has parameters in the new phase"):
        in_all_groups([group("d", 1)], everything)
    assert in_all_groups([group("d")], everything) == [group("a", lr=0.1), group("b"), group("c")]


# All functions together, with random patterns

MODEL = MLP([3], width=4, classes=2)
PREFIXES = ["body", "norm", "there", "back", "head", "head.bias", "norm.weight", "back.weight", "there.weight", "body.bias"]
PATTERN_LISTS = st.lists(st.sampled_from(PREFIXES), unique=True, max_size=4)


def covers(prefix: str, parameter: nn.Parameter) -> bool:
    """Return whether one of the parameter's names is the prefix or below it, computed in a slow and obvious way."""
    named = MODEL.named_parameters(remove_duplicate=False)
    return any(other is parameter and (name == prefix or name.startswith(f"{prefix}.")) for name, other in named)


@CHECKED
@given(
    PATTERN_LISTS,
    PATTERN_LISTS,
    st.sampled_from(["role", "one", "parameter", "module"]),
    st.lists(st.sampled_from(PREFIXES), min_size=1),
)
def test_each_parameter_is_in_one_group_at_most_with_the_learning_rate_of_the_first_pattern(frozen, lrs, groups_by, modules):
    selection = select(MODEL, frozen)
    group_functions = {
        "role": by_role,
        "one": all_in_one,
        "parameter": by_parameter,
        "module": partial(by_module, names=modules),
    }
    lr_of = {pattern: 1.0 + number for number, pattern in enumerate(lrs)}
    try:
        groups = split_by_lr(group_functions[groups_by](MODEL, selection), MODEL, selection, list(lr_of.items()))
    except ConfigError:
        assert groups_by == "module"  # a learning rate for parameters that are not in `groups.names`
        return
    groups = drop_empty_groups(split_by_frozen(groups, selection, lr=0.0))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = [p for p in MODEL.parameters() if groups_by != "module" or any(covers(name, p) for name in modules)]
    assert sorted(grouped) == sorted(map(id, wanted))
    for group in groups:
        assert len({parameter in selection for parameter in group["params"]}) == 1
        for parameter in group["params"]:
            first = next((lr_of[pattern] for pattern in lrs if covers(pattern, parameter)), None)
            assert group.get("lr") == (0.0 if parameter in selection else first)
    assert len({group["name"] for group in groups}) == len(groups)
    assert [group["name"] for group in torch.optim.SGD(groups, lr=0.1).param_groups] == [g["name"] for g in groups]


@CHECKED
@given(PATTERN_LISTS, PATTERN_LISTS, st.sampled_from(["role", "one", "parameter"]), st.booleans())
def test_regroup_after_split_for_later_gives_exactly_the_later_groups(frozen, lrs, groups_by, excludes):
    selection = select(MODEL, frozen)
    group_functions = {"role": by_role, "one": all_in_one, "parameter": by_parameter}
    lr_of = [(pattern, 1.0 + number) for number, pattern in enumerate(lrs)]
    groups = split_by_lr(group_functions[groups_by](MODEL, selection), MODEL, selection, lr_of)
    later = exclude_frozen(groups, selection) if excludes else split_by_frozen(groups, selection, lr=0.0)
    start = split_for_later(drop_empty_groups(groups), later)
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
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for group in later for p in group["params"]}

"""Selecting parameters and modules of a model by patterns, and the error message for every mistake."""

from __future__ import annotations

import re
from collections import OrderedDict
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from runner import audit
from runner.errors import ConfigError
from runner.freezing.parts.head import guess_head
from runner.freezing.selection import select, select_by_flags
from runner.freezing.words import FOR_CONFIG
from runner.training.models import MLP
from tests.in_memory import run_experiment

CHECKED = settings(max_examples=200, deadline=None, database=None, derandomize=True)


class CustomLinear(nn.Linear):
    """A subclass of Linear, as a user may define one."""


def net() -> nn.Sequential:
    """Return a model with the modules `body` (a linear layer and BatchNorm), `drop`, `fc`, `fc2`."""
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return nn.Sequential(OrderedDict(body=body, drop=nn.Dropout(), fc=nn.Linear(4, 2), fc2=CustomLinear(2, 2)))


def frozen(model: nn.Module, *args, **kwargs) -> list[str]:
    """Return the names of the parameters that `select` selects with these arguments."""
    return list(select(model, *args, **kwargs).parameters)


def error_message(*args, **kwargs) -> str:
    """Return the error message of `select`, and check that it is one line and a ValueError."""
    with pytest.raises(ConfigError) as caught:
        select(*args, **kwargs)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def resnet():
    """Return a resnet18, shared by the tests of this file."""
    return resnet18()


@pytest.mark.parametrize(
    ("pattern", "predicate", "count"),
    [
        ("fc", lambda name: name in ("fc.weight", "fc.bias"), 2),
        ("layer1.0", lambda name: name.startswith("layer1.0."), 6),
        ("fc.weight", lambda name: name == "fc.weight", 1),
        ("layer*.*.bn?", lambda name: name.startswith("layer") and name.split(".")[2] in ("bn1", "bn2"), 32),
        ("*", lambda name: True, 62),
        ("**.bias", lambda name: name.split(".")[-1] == "bias", 21),
        ("**", lambda name: True, 62),
        (r"re:layer[12]\..*bias", lambda name: name[:7] in ("layer1.", "layer2.") and name.endswith("bias"), 9),
        ("type:BatchNorm2d", lambda name: "bn" in name or "downsample.1" in name, 40),
        ("type:BasicBlock", lambda name: name.startswith("layer"), 57),
        ("@head", lambda name: name.startswith("fc."), 2),
    ],
)
def test_every_kind_of_pattern_selects_the_expected_parameters_of_resnet18(resnet, pattern, predicate, count):
    expected = [name for name, _ in resnet.named_parameters() if predicate(name)]
    assert frozen(resnet, [pattern]) == expected
    assert len(expected) == count


def test_all_but_the_head_are_selected_in_every_model(resnet):
    for model, head in [(resnet, "fc."), (net(), "fc2."), (MLP([3]), "head.")]:
        expected = [name for name, _ in model.named_parameters() if not name.startswith(head)]
        assert frozen(model, ["**"], keep=["@head"]) == expected


def test_an_empty_list_of_patterns_selects_nothing_and_all_parameters_can_be_selected():
    assert frozen(net(), []) == []
    assert frozen(net(), ["**"]) == [name for name, _ in net().named_parameters()]


def test_a_selection_compares_parameters_by_identity():
    model, other = net(), net()
    other.load_state_dict(model.state_dict())
    selection = select(model, ["fc"])
    assert model.fc.weight in selection
    assert selection.parameters["fc.weight"] is model.fc.weight
    assert model.fc2.weight not in selection
    assert other.fc.weight not in selection
    assert model.fc.weight.detach() not in selection
    assert "fc.weight" not in selection


# Mistakes

PYTHON_WORDS = {
    "freeze.patterns": "patterns",
    "freeze.keep": "keep",
    "freeze.buffers=frozen would keep them in eval mode": 'buffers="frozen" would select them',
    "freeze.buffers=frozen": 'buffers="frozen"',
    "freeze=backbone": 'select(model, ["**"], keep=["@head"]) for all the rest',
}


@pytest.mark.parametrize(
    ("patterns", "keep", "expected_texts"),
    [
        (["fcc"], [], ["freeze.patterns", "'fcc'", "did you mean", "fc"]),
        (["fc", "bodi.0"], [], ["freeze.patterns", "'bodi.0'", "body.0"]),
        (["fc.wait"], [], ["fc.weight"]),
        (["FC"], [], ["'FC'", "did you mean", "fc"]),
        (["Body"], [], ["did you mean", "body"]),
        (["nothing_like_it"], [], ["body", "fc", "fc2"]),
        (["re:fc"], [], ["re:fc", "whole name", "body.0.weight"]),
        (["re:FC.*"], [], ["whole name"]),
        (["type:BatchNorm2d"], [], ["BatchNorm1d"]),
        (["type:linear"], [], ["did you mean", "Linear"]),
        (["type:torch.nn.Conv2d"], [], ["type:torch.nn.Conv2d"]),
        (["drop"], [], ["drop"]),
        (["type:Dropout"], [], ["type:Dropout", "freeze.buffers=frozen"]),
        (["**.running_mean"], [], ["only buffers", "freeze.buffers=frozen"]),
        (["backbone"], [], ["@head", "freeze=backbone"]),
        (["fc"], ["fcc"], ["freeze.keep", "'fcc'", "did you mean"]),
        (["fc"], ["FC.weight"], ["freeze.keep", "fc.weight"]),
        (["fc"], ["body"], ["freeze.keep", "'body'", "exempts nothing"]),
        (["**"], ["body", "drop"], ["freeze.keep", "'drop'"]),
        ([], ["body"], ["freeze.keep", "'body'", "exempts nothing"]),
        (["fc", "body"], ["fc.*"], ["freeze.patterns", "'fc'", "freezes nothing"]),
        (["**"], ["*"], ["freeze.patterns", "'**'", "freezes nothing"]),
        (["**", "fc.weight"], ["fc"], ["'fc.weight'", "freezes nothing"]),
        (["fc", "body"], ["fc"], ["'fc'", "remove it from one of them"]),
        (["**"], ["**"], ["'**'", "remove it from one of them"]),
        ([""], [], ["freeze.patterns", "''"]),
        (["fc"], [" "], ["freeze.keep", "' '"]),
        (["fc", None], [], ["freeze.patterns", "None"]),
        (["re:fc("], [], ["freeze.patterns", "not a regular expression"]),
        (["**"], ["fc."], ["freeze.keep", "empty part"]),
        ("fc", [], ["freeze.patterns", "['fc']"]),
        (["**"], "fc", ["freeze.keep", "['fc']"]),
    ],
)
def test_the_message_for_a_mistake_has_its_key_the_pattern_and_similar_names(patterns, keep, expected_texts):
    text = error_message(net(), patterns, keep, words=FOR_CONFIG)
    assert [part for part in expected_texts if part not in text] == []
    in_python = error_message(net(), patterns, keep)  # the same message, in the words of the API
    for key, argument in PYTHON_WORDS.items():
        text = text.replace(key, argument)
    assert in_python == text


def test_any_value_of_buffers_but_live_and_frozen_is_an_error():
    assert "live or frozen" in error_message(net(), ["fc"], buffers="held")


def test_the_messages_are_the_same_with_frozen_buffers():
    assert "fc" in error_message(net(), ["fcc"], buffers="frozen")
    assert "exempts nothing" in error_message(net(), ["fc"], ["body"], buffers="frozen")
    assert "freezes nothing" in error_message(net(), ["fc", "body"], ["fc.**"], buffers="frozen")


# Ties


def test_tied_parameters_are_selected_by_either_name():
    model = MLP([3])
    for name in ("there.weight", "back.weight"):
        selection = select(model, [name])
        assert list(selection.parameters) == ["there.weight"]
        assert model.there.weight in selection
        assert model.back.weight in selection
    assert frozen(model, ["back"]) == ["there.weight", "back.bias"]


def test_keep_exempts_a_tied_tensor_under_all_its_names_and_a_note_says_so():
    model = MLP([3])
    selection = select(model, ["there"], keep=["back.weight"])
    assert list(selection.parameters) == ["there.bias"]
    (note,) = selection.notes
    assert note == "there.weight is not frozen: it is tied to back.weight, which keep exempts"
    (note,) = select(model, ["there"], keep=["back.weight"], words=FOR_CONFIG).notes
    assert note.endswith("which freeze.keep exempts")


def test_an_embedding_that_is_tied_to_the_exempt_head_is_exempt():
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(5, 4), mix=nn.Linear(4, 4), out=nn.Linear(4, 5, bias=False)))
    model.out.weight = model.embed.weight
    selection = select(model, ["**"], keep=["@head"], batch=torch.tensor([[1]]))
    assert list(selection.parameters) == ["mix.weight", "mix.bias"]
    assert selection.notes == (
        "@head is out: the loss of the batch is made there",
        "embed.weight is not frozen: it is tied to out.weight, which keep exempts",
    )


@pytest.mark.parametrize(
    ("patterns", "keep"),
    [(["there", "back.weight"], []), (["**"], ["head"]), (["**"], ["there", "back"]), (["body"], ["body.bias"])],
)
def test_there_is_no_note_if_no_tensor_is_exempt_or_frozen_through_a_tie(patterns, keep):
    assert select(MLP([3]), patterns, keep).notes == ()


def test_a_tensor_that_is_frozen_under_a_name_that_no_pattern_matches_is_said_in_a_note():
    model = nn.ModuleDict({"wte": nn.Embedding(5, 4), "lm_head": nn.Linear(4, 5, bias=False)})
    model.lm_head.weight = model.wte.weight
    assert select(model, ["lm_head"]).notes == ("lm_head.weight is the same tensor as wte.weight: both are frozen",)
    assert select(model, ["wte"]).notes == ("wte.weight is the same tensor as lm_head.weight: both are frozen",)
    assert select(model, ["**"]).notes == ()
    model["third"] = model.lm_head
    expected = "wte.weight is the same tensor as lm_head.weight and third.weight: all are frozen"
    assert select(model, ["wte"]).notes == (expected,)
    assert select(model, ["wte", "third"]).notes == ("wte.weight is the same tensor as lm_head.weight: both are frozen",)


def test_many_ties_are_said_in_one_short_note():
    shared = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    (note,) = select(nn.ModuleList([shared, shared]), ["0"]).notes
    assert note.startswith("0.0.weight is the same tensor as 1.0.weight, 0.0.bias is the same tensor as 1.0.bias, ")
    assert note.endswith(" and 7 more: all are frozen")


def test_a_module_under_two_names_is_selected_or_exempted_by_either():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(2, 2))
    assert frozen(model, ["2"]) == frozen(model, ["0"]) == ["0.weight", "0.bias"]
    assert frozen(model, ["**"], keep=["2"]) == ["3.weight", "3.bias"]


def test_parameters_with_equal_values_are_not_confused():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    selection = select(model, ["0"])
    assert torch.equal(model[0].weight, model[1].weight)
    assert model[0].weight in selection
    assert model[1].weight not in selection
    assert frozen(model, ["**"], keep=["1"]) == ["0.weight", "0.bias"]
    assert select(model, ["**"], keep=["1"]).notes == ()


# Wrappers


def compiled_within(model: nn.Module) -> nn.Module:
    """Return the model with its child `body` compiled."""
    model.body = torch.compile(model.body)
    return model


WRAPPERS = {
    "module.": nn.DataParallel,
    "_orig_mod.": torch.compile,
    "_orig_mod.module.": lambda model: torch.compile(nn.DataParallel(model)),
    "module._orig_mod.": lambda model: nn.DataParallel(torch.compile(model)),
    "body._orig_mod.": compiled_within,
}
PATTERN_CASES = [
    (["fc"], []),
    (["body.0", "fc2.bias"], []),
    (["*.weight"], []),
    (["**.bias"], ["fc"]),
    ([r"re:body\.[01]\.weight"], []),
    (["type:BatchNorm1d"], []),
    (["**"], ["@head"]),
    (["@head", "body"], ["body.1"]),
]


@pytest.mark.parametrize(("patterns", "keep"), PATTERN_CASES)
@pytest.mark.parametrize("prefix", WRAPPERS)
def test_patterns_ignore_the_prefixes_that_wrappers_add(prefix, patterns, keep):
    model = net()
    plain = [id(tensor) for tensor in select(model, patterns, keep).parameters.values()]
    wrapped = WRAPPERS[prefix](model)
    selection = select(wrapped, patterns, keep)
    assert [id(tensor) for tensor in selection.parameters.values()] == plain
    assert set(selection.parameters) <= {name for name, _ in wrapped.named_parameters()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_pattern_may_contain_the_prefix_of_a_wrapper(prefix):
    assert frozen(WRAPPERS[prefix](net()), [f"{prefix}fc"]) == [f"{prefix}fc.weight", f"{prefix}fc.bias"]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_modules_are_selected_inside_a_wrapper_as_they_are_outside(prefix):
    model = net()
    bare = select(model, ["body"], buffers="frozen").buffers
    wrapped = WRAPPERS[prefix](model)
    selection = select(wrapped, ["body"], buffers="frozen")
    assert [id(buffer) for buffer in selection.buffers.values()] == [id(buffer) for buffer in bare.values()]
    assert model.fc not in selection.modules.values()
    assert wrapped not in selection.modules.values()


def test_a_module_of_the_user_that_is_called_module_is_not_a_wrapper():
    model = nn.Sequential(OrderedDict(module=nn.Sequential(OrderedDict(fc=nn.Linear(2, 2))), fc=nn.Linear(2, 2)))
    assert frozen(model, ["fc"]) == ["fc.weight", "fc.bias"]


# @head


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("fc", ["fc.weight", "fc.bias"]),
        ("fc.bias", ["fc.bias"]),
        ("f*", ["fc.weight", "fc.bias", "fc2.weight", "fc2.bias"]),
        (["fc2", "body.1"], ["body.1.weight", "body.1.bias", "fc2.weight", "fc2.bias"]),
        ("auto", ["fc2.weight", "fc2.bias"]),
        (None, ["fc2.weight", "fc2.bias"]),
    ],
)
def test_the_head_is_the_given_patterns_or_what_auto_finds(head, expected):
    assert frozen(net(), ["@head"], head=head) == expected
    everything = [name for name, _ in net().named_parameters()]
    assert frozen(net(), ["**"], keep=["@head"], head=head) == [name for name in everything if name not in expected]


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "2"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Softmax(1)), "0"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten())), "1.0"),
        (MLP([3]), "head"),
    ],
)
def test_guess_head_returns_the_last_module_with_its_own_parameters_and_an_output_size(model, head):
    assert guess_head(model, None, FOR_CONFIG) == head


def test_the_message_for_a_head_that_does_not_exist_has_a_similar_name():
    assert "fc2" in error_message(net(), ["@head"], head="fc3")
    assert "the classifier, head=classifier," in error_message(net(), ["**"], keep=["@head"], head="classifier")
    assert "name it with head=NAME" in error_message(nn.Sequential(nn.BatchNorm1d(2)), ["@head"])
    assert error_message(net(), ["@head"], head="fc..0").startswith("head: ")


@pytest.mark.parametrize("head", [["fc3", "fc2"], ["fc2", "fc3"], ["fc2", "fc", "fc3"]])
@pytest.mark.parametrize("options", [{}, {"buffers": "frozen"}])
def test_each_pattern_of_the_head_must_match_something(head, options):
    expected = "head: 'fc3' matches no parameter or module of the model; did you mean fc or fc2?"
    assert error_message(net(), ["@head"], head=head, **options) == expected
    assert error_message(net(), ["**"], keep=["@head"], head=head, **options) == expected


def test_the_head_may_list_a_module_without_parameters():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "drop": nn.Dropout(), "fc": nn.Linear(2, 2)})
    assert frozen(model, ["@head"], head=["drop", "fc"]) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("head", ["@head", ["fc", "@head"]])
def test_the_head_cannot_stand_for_itself(head):
    expected = "head: @head stands for these patterns; give the name of the classifier"
    assert error_message(net(), ["@head"], head=head) == expected


def test_in_a_config_the_messages_call_the_head_by_its_key():
    keys = {"words": FOR_CONFIG}
    assert "the classifier, model.head=fc3," in error_message(net(), ["@head"], head="fc3", **keys)
    assert "name it with model.head=NAME" in error_message(nn.Sequential(nn.BatchNorm1d(2)), ["@head"], **keys)
    assert error_message(net(), ["@head"], head="fc..0", **keys).startswith("model.head: ")


# type:


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BatchNorm1d", ["body.1.weight", "body.1.bias"]),
        ("torch.nn.BatchNorm1d", ["body.1.weight", "body.1.bias"]),
        ("torch.nn.modules.batchnorm.BatchNorm1d", ["body.1.weight", "body.1.bias"]),
        ("_BatchNorm", ["body.1.weight", "body.1.bias"]),
        ("torch.nn.modules.batchnorm._BatchNorm", ["body.1.weight", "body.1.bias"]),
        ("CustomLinear", ["fc2.weight", "fc2.bias"]),
        (f"{__name__}.CustomLinear", ["fc2.weight", "fc2.bias"]),
    ],
)
def test_a_type_is_given_by_class_name_or_dotted_path(kind, expected):
    assert frozen(net(), [f"type:{kind}"]) == expected


@pytest.mark.parametrize("kind", ["Linear", "torch.nn.Linear", "torch.nn.modules.linear.Linear"])
def test_a_type_matches_subclasses(kind):
    expected = [f"{module}.{own}" for module in ("body.0", "fc", "fc2") for own in ("weight", "bias")]
    assert frozen(net(), [f"type:{kind}"]) == expected


def test_a_type_matches_all_parameters_below_its_modules():
    model = nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(4, 2, 4))
    below = [name for name, _ in model.named_parameters() if name.startswith("1.")]
    assert frozen(model, ["type:TransformerEncoderLayer"]) == below
    assert frozen(model, ["type:Sequential"]) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("kind", ["Lin", "linear", "Linear2", "torch.nn.linear.Linear", "nn.Linear", "os.path.join"])
def test_a_type_does_not_match_a_part_of_a_name_another_case_or_another_path(kind):
    assert f"type:{kind}" in error_message(net(), [f"type:{kind}"])


# Buffers


@pytest.mark.parametrize(
    ("patterns", "keep", "modules"),
    [
        (["body"], [], ["body", "body.0", "body.1"]),
        (["body.1"], [], ["body.1"]),
        (["**.1"], [], ["body.1"]),
        (["type:BatchNorm1d"], [], ["body.1"]),
        (["**"], [], ["", "body", "body.0", "body.1", "drop", "fc", "fc2"]),
        (["**"], ["@head"], ["", "body", "body.0", "body.1", "drop", "fc"]),
        (["**"], ["body"], ["", "drop", "fc", "fc2"]),
        (["**"], ["body.1"], ["", "body", "body.0", "drop", "fc", "fc2"]),
        (["**"], ["body.1.weight"], ["", "body", "body.0", "body.1", "drop", "fc", "fc2"]),
        (["**"], ["drop"], ["", "body", "body.0", "body.1", "fc", "fc2"]),
        (["drop"], [], ["drop"]),
        (["**.weight"], [], []),
        ([], [], []),
        (["re:body"], [], ["body", "body.0", "body.1"]),
        (["**"], ["re:body"], ["", "drop", "fc", "fc2"]),
    ],
)
def test_a_module_is_selected_if_a_pattern_matches_it_or_its_parent_and_no_keep_entry_does(patterns, keep, modules):
    model = net()
    selection = select(model, patterns, keep, buffers="frozen")
    assert list(selection.modules) == modules
    assert all(module is model.get_submodule(name) for name, module in selection.modules.items())
    buffers = [name for name, _ in model.named_buffers() if name.rpartition(".")[0] in modules]
    assert list(selection.buffers) == buffers
    assert all(buffer is model.get_buffer(name) for name, buffer in selection.buffers.items())


@pytest.mark.parametrize(("patterns", "keep"), [(["body"], []), (["**"], ["@head"]), (["**"], ["body.1"]), (["fc"], [])])
def test_the_buffers_option_does_not_change_which_parameters_are_frozen(patterns, keep):
    model = net()
    assert frozen(model, patterns, keep, "live") == frozen(model, patterns, keep, "frozen")


def test_with_live_buffers_no_module_and_no_buffer_is_selected():
    selection = select(net(), ["**"])
    assert selection.modules == {}
    assert selection.buffers == {}


@pytest.mark.parametrize("pattern", ["1", "type:BatchNorm1d", "?"])
def test_a_pattern_that_matches_only_modules_without_parameters_declares_their_buffers(pattern):
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.BatchNorm1d(2, affine=False))
    for buffers, modules in (("live", []), ("frozen", ["1"])):
        selection = select(model, [pattern], buffers=buffers)
        assert [name for name in selection.modules if name[:1] == "1"] == modules
        assert selection.parameters == {}
        assert list(selection.buffers) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
        assert selection.names == set(selection.buffers)
        assert model[1].running_mean in selection


@pytest.mark.parametrize("pattern", ["**", "*", "0", "re:.*weight", "type:Module"])
def test_a_pattern_that_matches_parameters_leaves_the_buffers_in_its_modules_live(pattern):
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2))
    assert select(nn.Sequential(inner), [pattern]).buffers == {}


def test_a_regular_expression_that_matches_parameters_too_declares_no_live_buffer():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert not select(model, ["re:1.*"]).buffers
    assert list(select(model, ["re:1.*"], buffers="frozen").buffers) == [f"1.{name}" for name, _ in model[1].named_buffers()]


@pytest.mark.parametrize("buffers", ["live", "frozen"])
@pytest.mark.parametrize("pattern", ["body.1.running_mean", r"re:body\..*mean", r"re:.*\.running_m[a-z]*"])
def test_a_buffer_that_a_pattern_names_in_full_is_declared_whatever_buffers_says(pattern, buffers):
    model = net()
    selection = select(model, [pattern], buffers=buffers)
    assert list(selection.buffers) == ["body.1.running_mean"]
    assert selection.names == {"body.1.running_mean"}
    assert (selection.parameters, selection.modules) == ({}, {})
    assert model.body[1].running_mean in selection
    assert model.body[1].running_var not in selection
    assert model.body[1].running_mean.clone() not in selection


def test_a_buffer_is_declared_beside_parameters_and_inside_wrappers():
    selection = select(net(), ["fc", "body.1.running_var"])
    assert list(selection.parameters) == ["fc.weight", "fc.bias"]
    assert selection.names == {"fc.weight", "fc.bias", "body.1.running_var"}
    assert list(select(nn.DataParallel(net()), ["body.1.running_var"]).buffers) == ["module.body.1.running_var"]


def test_keep_exempts_a_declared_buffer_also_by_another_of_its_names():
    shared = nn.BatchNorm1d(2, affine=False)
    model = nn.Sequential(shared, nn.Linear(2, 2), shared)
    assert list(select(model, ["0"], keep=["re:0.*(var|tracked)"]).buffers) == ["0.running_mean"]
    selection = select(model, ["0"], keep=["2.running_var"], buffers="frozen")
    assert list(selection.buffers) == ["0.running_mean", "0.num_batches_tracked"]
    assert list(selection.modules) == ["0", "2"]
    assert "freezes nothing" in error_message(model, ["0.running_mean"], ["2"])
    assert "exempts nothing" in error_message(model, ["1"], ["0.running_mean"])


def test_a_declared_buffer_is_judged_like_a_frozen_parameter_by_an_audit_and_by_a_run():
    model = MLP([3])
    with audit(model, ["norm.running_mean", "body"]) as report:
        model(torch.randn(5, 3))
    assert report.leaks == ["norm.running_mean"]
    outcome = run_experiment("model=mlp", "freeze.patterns=[norm.running_mean, there]", "freeze.keep=[]", "batches=2")
    buffers = {row["name"]: row["verdict"] for row in outcome.rows if row["kind"] == "buffer"}
    assert buffers == dict.fromkeys(buffers, "drifted") | {"norm.running_mean": "leaked"}
    assert "there.weight is the same tensor as back.weight: both are frozen" in outcome.notes


def test_a_selection_of_flags_contains_no_buffer():
    assert net().body[1].running_mean not in select_by_flags(net().requires_grad_(False))


def test_a_module_under_two_names_is_selected_or_exempted_under_both():
    shared = nn.BatchNorm1d(2)
    model = nn.Sequential(shared, nn.Linear(2, 2), shared)
    assert all(list(select(model, [name], buffers="frozen").modules) == ["0", "2"] for name in ("0", "2"))
    assert shared not in select(model, ["**"], keep=["2"], buffers="frozen").modules.values()
    assert select(model, ["**"], keep=["2"], buffers="frozen").buffers == {}


# Random patterns on a model with tied weights

MODEL = MLP([3], width=4, classes=2)
NAMES = [name for name, _ in MODEL.named_parameters(remove_duplicate=False)]  # both names of the tied tensor
LINEAR = ("body", "there", "back", "head")
REGEX_OF_PATTERN = {
    **{name: re.compile(rf"{re.escape(name)}(\..*)?") for name in [*NAMES, "body", "norm", "there", "back", "head"]},
    "**": re.compile(".*"),
    "**.bias": re.compile(r".*\.bias"),
    "?o*.weight": re.compile(r"(body|norm)\.weight"),
    "re:.*a.*weight": re.compile(r"(back|head)\.weight"),
    "type:Linear": re.compile(rf"({'|'.join(LINEAR)})\..*"),
    "@head": re.compile(r"head\..*"),
}
ENTRIES = st.lists(st.sampled_from(sorted(REGEX_OF_PATTERN)), max_size=4)


def matched_ids(pattern: str) -> set[int]:
    """Return the id of every parameter that has a name which the regular expression of the pattern matches."""
    named = MODEL.named_parameters(remove_duplicate=False)
    return {id(parameter) for name, parameter in named if REGEX_OF_PATTERN[pattern].fullmatch(name)}


def select_slowly(patterns: list[str], keep: list[str]) -> set[int] | None:
    """Return the ids of the frozen parameters, or None if `select` should raise an error; slow and obvious."""
    matched, exempt = set().union(*map(matched_ids, patterns)), set().union(*map(matched_ids, keep))
    is_error = (
        set(patterns) & set(keep)
        or any(not matched_ids(k) & matched for k in keep)
        or any(matched_ids(p) <= exempt for p in patterns)
    )
    return None if is_error else matched - exempt


def selected_ids(patterns: list[str], keep: list[str]) -> set[int] | None:
    """Return the ids of the parameters that `select` selects, or None if it raises an error."""
    try:
        return {id(tensor) for tensor in select(MODEL, patterns, keep).parameters.values()}
    except ConfigError:
        return None


@CHECKED
@given(ENTRIES, ENTRIES)
def test_select_agrees_with_a_slow_computation_on_sets_of_ids_also_on_errors(patterns, keep):
    assert selected_ids(patterns, keep) == select_slowly(patterns, keep)


@CHECKED
@given(ENTRIES, ENTRIES)
def test_each_parameter_is_either_frozen_or_trainable_and_never_frozen_if_exempt(patterns, keep):
    if select_slowly(patterns, keep) is None:
        return
    selection = select(MODEL, patterns, keep)
    parameters = {id(parameter) for parameter in MODEL.parameters()}
    declared = {id(parameter) for parameter in MODEL.parameters() if parameter in selection}
    trainable = {id(parameter) for parameter in MODEL.parameters() if parameter not in selection}
    assert declared == {id(tensor) for tensor in selection.parameters.values()}
    assert declared | trainable == parameters
    assert not declared & trainable
    assert not declared & set().union(*map(matched_ids, keep))


@CHECKED
@given(ENTRIES, ENTRIES)
def test_selecting_by_the_names_of_a_selection_gives_the_same_selection(patterns, keep):
    if not select_slowly(patterns, keep):
        return
    once = frozen(MODEL, patterns, keep)
    assert frozen(MODEL, once) == once


@CHECKED
@given(
    st.lists(st.sampled_from(sorted(REGEX_OF_PATTERN)), max_size=3),
    st.lists(st.sampled_from(sorted(REGEX_OF_PATTERN)), max_size=2),
)
def test_the_order_and_repetition_of_patterns_do_not_matter(patterns, keep):
    first = selected_ids(patterns, keep)
    assert all(selected_ids(list(order), keep[::-1]) == first for order in permutations(patterns))
    assert selected_ids(patterns * 2, keep * 2) == first


# Flags


def test_select_by_flags_selects_all_parameters_with_requires_grad_false():
    model = MLP([3])
    assert select_by_flags(model).parameters == {}
    model.back.weight.requires_grad_(False)
    model.norm.bias.requires_grad_(False)
    selection = select_by_flags(model)
    assert list(selection.parameters) == ["norm.bias", "there.weight"]
    assert model.back.weight in selection
    assert model.norm.weight not in selection
    assert selection.buffers == {}
    assert selection.modules == {}


# Arguments of a wrong type


NET = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "model is None; give a torch.nn.Module"),
        ({"model": nn.Linear}, r"model is the class Linear; give a model, Linear\(\.\.\.\)"),
        ({"model": NET.state_dict()}, r"model is OrderedDict.*; give a torch\.nn\.Module"),
        ({"patterns": 5}, "patterns is 5; give a list of patterns"),
        ({"patterns": None}, "patterns is None; give a list of patterns"),
        ({"patterns": NET[0]}, "patterns is Linear.*; give a list of patterns"),
        ({"patterns": {"0": 1}}, "patterns is .*; give a list of patterns"),
        ({"patterns": "0"}, "patterns: '0' is one pattern where a list is expected; write"),
        ({"patterns": [0]}, "patterns: 0 is not a pattern"),
        ({"patterns": ["“0”"]}, "patterns: '“0”' stands in typographic quotes; write '0'"),
        ({"keep": None}, "keep is None; give a list of patterns"),
        ({"keep": 5}, "keep is 5; give a list of patterns"),
        ({"head": 5}, "head is 5; give a list of patterns"),
        ({"head": NET[1]}, "head is Linear.*; give a list of patterns"),
        ({"buffers": True}, "buffers is True; give live or frozen"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_an_argument_of_a_wrong_type_is_a_config_error_that_names_the_argument(arguments, message):
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        select(**{"model": NET, "patterns": ["0"], **arguments})
    assert "\n" not in str(caught.value)


def test_a_generator_of_patterns_is_read_once():
    assert list(select(NET, (name for name in ["0"]), keep=iter(["0.bias"])).parameters) == ["0.weight"]
    with pytest.raises(ConfigError, match="is in patterns and in keep"):
        select(NET, (name for name in ["0", "1"]), keep=iter(["1"]))


def test_a_parameter_whose_name_is_that_of_a_module_and_a_slash_does_not_select_the_module():
    model = nn.Module()
    model.add_module("norm", nn.BatchNorm1d(2))
    model.register_parameter("norm/", nn.Parameter(torch.ones(2)))
    selection = select(model, ["norm/"], buffers="frozen")
    assert (list(selection.parameters), list(selection.buffers), list(selection.modules)) == (["norm/"], [], [])

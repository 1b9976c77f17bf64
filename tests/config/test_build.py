"""A config node becomes the object it names, and every mistake in it is said before the target is called."""

from __future__ import annotations

import builtins
import re
from functools import partial

import pytest
import torch
from torch import nn

from runner.config.build import build, build_a, locate
from runner.errors import ConfigError


class Kept:
    """Keeps what it was called with."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


def never_called(size: int, rate=0.5, steps=3, careful=True, name=None):
    raise AssertionError("the target was called")


def raises(error):
    raise getattr(builtins, error)("a bug of mine")


def teaches():
    raise ConfigError("exactly this")


def here(name):
    return f"{__name__}.{name}"


def test_a_node_becomes_what_its_target_returns():
    layer = build({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2, "bias": False}, "model.build")
    assert isinstance(layer, nn.Linear)
    assert (layer.weight.shape, layer.bias) == ((2, 3), None)


def test_what_the_caller_gives_comes_first_and_by_name():
    kept = build({"_target_": here("Kept"), "_args_": [3], "b": 4}, "task", 1, 2, c=5)
    assert (kept.args, kept.kwargs) == ((1, 2, 3), {"b": 4, "c": 5})


def test_nodes_inside_nodes_lists_mappings_and_args_are_built_first():
    inner = {"_target_": "torch.nn.ReLU"}
    node = {"_target_": here("Kept"), "_args_": [inner], "one": inner, "listed": [1, inner], "mapped": {"a": {"b": inner}}}
    kept = build(node, "task")
    built = [kept.args[0], kept.kwargs["one"], kept.kwargs["listed"][1], kept.kwargs["mapped"]["a"]["b"]]
    assert all(isinstance(one, nn.ReLU) for one in built)
    assert kept.kwargs["listed"][0] == 1


def test_a_node_is_left_as_it_was():
    node = {"_target_": here("Kept"), "nested": {"_target_": "torch.nn.ReLU"}}
    build(node, "task")
    assert node == {"_target_": here("Kept"), "nested": {"_target_": "torch.nn.ReLU"}}


def test_directives_are_not_arguments():
    kept = build({"_target_": here("Kept"), "_partial_": False}, "task")
    assert (kept.args, kept.kwargs) == ((), {})


@pytest.mark.parametrize("directive", ["_convert_", "_recursive_"])
def test_a_directive_of_hydra_that_would_do_nothing_is_refused(directive):
    for node in (
        {"_target_": here("Kept"), directive: "all"},
        {"_target_": here("Kept"), "inner": {"_target_": "torch.nn.ReLU", directive: False}},
    ):
        with pytest.raises(ConfigError, match=rf"^task\.(inner\.)?{directive} is not supported"):
            build(node, "task")


def test_a_partial_node_is_the_call_unmade():
    unmade = build({"_target_": here("Kept"), "_partial_": True, "_args_": [1], "rate": 2}, "task")
    assert isinstance(unmade, partial)
    kept = unmade(3)
    assert (kept.args, kept.kwargs) == ((1, 3), {"rate": 2})


def test_a_partial_node_may_leave_arguments_to_whoever_calls_it():
    unmade = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.25}, "optimizer")
    assert unmade([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 0.25


def test_a_partial_node_is_checked_against_the_signature_all_the_same():
    with pytest.raises(ConfigError, match=r"optimizer\.momentun.*did you mean momentum"):
        build({"_target_": "torch.optim.SGD", "_partial_": True, "momentun": 0.9}, "optimizer")


@pytest.mark.parametrize("path", ["torch.optim.SGD", "torch.optim.sgd.SGD", "torch.nn.functional.relu", "builtins.dict"])
def test_a_dotted_path_leads_to_a_class_or_function(path):
    assert locate(path, "x._target_").__name__ == path.rpartition(".")[2]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("torch.optim.SDG", "torch.optim has no SDG; did you mean .*SGD"),
        ("torch.optmi.SGD", "torch has no optmi; did you mean .*optim"),
        ("torch.nn.Linear.forwards", "torch.nn.Linear has no forwards; did you mean .*forward"),
        ("torhc.optim.SGD", "no module 'torhc'"),
        ("SGD", "'SGD' does not exist"),
        ("torch.pi", "torch.pi is a float; it must be a class or function"),
        ("torch.optim", "torch.optim is a module; it must be a class or function"),
    ],
)
def test_a_target_that_is_not_there_is_refused_with_the_nearest_names(path, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build({"_target_": path}, "optimizer")
    assert str(caught.value).startswith("optimizer._target_: ")


@pytest.mark.parametrize("path", ["", ".", ".SGD", "torch.", "torch..SGD", "..", " torch.optim.SGD"])
def test_a_malformed_path_is_refused_like_any_other(path):
    with pytest.raises(ConfigError, match=r"^optimizer\._target_"):
        build({"_target_": path}, "optimizer")


@pytest.mark.parametrize("node", [{}, {"lr": 0.1}, {"_target_": None}, {"_target_": 3}])
def test_a_node_without_a_target_is_refused(node):
    with pytest.raises(ConfigError, match=r"optimizer\._target_ is .*; give the dotted path"):
        build(node, "optimizer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 1, "stepz": 4}, r"task\.stepz: .* takes no stepz; did you mean steps"),
        ({"size": 1, "xyzzy": 4}, r"task\.xyzzy: .* takes no xyzzy$"),
        ({"rate": 1.0}, "missing a required argument: 'size'"),
        ({"_args_": [1, 2, 3, 4, 5, 6]}, "too many positional arguments"),
        ({"_args_": [1], "size": 1}, "multiple values for argument 'size'"),
        ({"size": 1, "steps": "many"}, r"task\.steps is 'many'; .* expects a number .*3"),
        ({"size": 1, "rate": "fast"}, r"task\.rate is 'fast'; .* expects a number .*0\.5"),
        ({"size": 1, "careful": "perhaps"}, r"task\.careful is 'perhaps'; .* true/false"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_the_target_is_called(arguments, said):
    with pytest.raises(ConfigError, match=said):
        build({"_target_": here("never_called"), **arguments}, "task")


def test_a_mistake_in_a_nested_node_is_said_with_the_whole_key():
    node = {"_target_": here("never_called"), "name": {"deep": [{"_target_": "torch.nn.ReLU", "inplaec": True}]}}
    with pytest.raises(
        ConfigError, match=r"^task\.name\.deep\[0\]\.inplaec: torch\.nn\.ReLU takes no inplaec; did you mean inplace"
    ):
        build(node, "task")


def test_a_text_is_welcome_where_no_number_is_expected():
    with pytest.raises(AssertionError, match="the target was called"):
        build({"_target_": here("never_called"), "size": 1, "name": "text"}, "task")


def test_a_value_error_of_a_library_is_the_users_mistake_and_keeps_its_cause():
    with pytest.raises(ConfigError, match=r"task: torch\.nn\.Dropout refused its arguments: dropout probability") as caught:
        build({"_target_": "torch.nn.Dropout", "p": 2}, "task")
    assert type(caught.value.__cause__) is ValueError


def test_a_config_error_of_the_target_passes_word_for_word():
    with pytest.raises(ConfigError, match=r"^exactly this$"):
        build({"_target_": here("teaches")}, "data")


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, AttributeError, ValueError])
def test_a_bug_inside_a_target_passes_unchanged(error):
    with pytest.raises(error) as caught:
        build({"_target_": here("raises"), "error": error.__name__}, "task")
    assert type(caught.value) is error
    assert caught.value.args == ("a bug of mine",)


@pytest.mark.parametrize("needs", ["no_such_library", "no_such_library.below", "broken_user_module_needs"])
def test_a_module_that_cannot_import_another_says_which(needs, tmp_path, monkeypatch):
    (tmp_path / "broken_user_module.py").write_text(f"import {needs}\n\n\nclass Net: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"needs the module {needs.partition('.')[0]}, which is not installed"):
        build({"_target_": "broken_user_module.Net"}, "model.build")


def test_an_error_while_a_users_module_is_imported_passes_unchanged(tmp_path, monkeypatch):
    (tmp_path / "failing_user_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        build({"_target_": "failing_user_module.Net"}, "model.build")


def test_a_target_in_a_package_of_the_current_folder_is_found_by_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "user_package").mkdir()
    (tmp_path / "user_package" / "__init__.py").write_text("")
    (tmp_path / "user_package" / "nets.py").write_text("class Net:\n    class Inner: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(build({"_target_": "user_package.nets.Net"}, "model.build")).__name__ == "Net"
    assert type(build({"_target_": "user_package.nets.Net.Inner"}, "model.build")).__name__ == "Inner"
    with pytest.raises(ConfigError, match="user_package has no netz; did you mean nets"):
        build({"_target_": "user_package.netz.Net"}, "model.build")


@pytest.mark.parametrize("kind", [int, float])
def test_what_is_not_of_the_kind_that_is_needed_is_refused_by_its_key(kind):
    with pytest.raises(
        ConfigError, match=r"^model\.build gave a (int|float); it must give a torch\.nn\.modules\.module\.Module"
    ):
        build_a(torch.nn.Module, {"_target_": f"builtins.{kind.__name__}"}, "model.build")
    assert isinstance(build_a(torch.nn.Module, {"_target_": "torch.nn.ReLU"}, "model.build"), torch.nn.ReLU)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("runner.models.MLP", "did you mean runner.training.models.MLP?"),
        ("runner.data.Synthetic", "did you mean runner.training.data.Synthetic?"),
        ("runner.groups.by_role", "did you mean runner.freezing.groups.by_role?"),
        ("runner.methods.Exclude", "did you mean runner.methods.exclude.Exclude?"),
        ("runner.methods.zero_grd.ZeroGrad", "did you mean runner.methods.zero_grad.ZeroGrad?"),
        ("runner.training.models.MPL", "did you mean MLP?"),
        ("runner.trainin.models.Mine", "did you mean training or tracing?"),
    ],
)
def test_a_path_of_ours_that_is_not_there_is_answered_with_where_the_name_is(path, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        build({"_target_": path}, "model.build")

"""`build` returns the object that a config node declares, and finds mistakes before it calls the target."""

from __future__ import annotations

import builtins
import inspect
import re
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from runner.config.build import build, build_converted, build_instance, call, locate
from runner.errors import ConfigError, SkippedError


class Recorder:
    """Stores the arguments that it was called with."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


def must_not_be_called(size: int, rate=0.5, steps=3, careful=True, name=None):
    """Raise AssertionError; the tests need only its signature."""
    raise AssertionError("the target was called")


def raise_error(error):
    """Raise the built-in exception of this name."""
    raise getattr(builtins, error)("a bug of the user")


def raise_config_error():
    """Raise a ConfigError."""
    raise ConfigError("the exact message")


def path_of(name):
    """Return the dotted path of a name in this file."""
    return f"{__name__}.{name}"


def test_build_returns_what_the_target_returns():
    layer = build({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2, "bias": False}, "model.build")
    assert isinstance(layer, nn.Linear)
    assert (layer.weight.shape, layer.bias) == ((2, 3), None)


def test_arguments_of_the_caller_come_before_those_of_the_node():
    recorder = build({"_target_": path_of("Recorder"), "_args_": [3], "b": 4}, "task", 1, 2, c=5)
    assert (recorder.args, recorder.kwargs) == ((1, 2, 3), {"b": 4, "c": 5})


def test_nodes_in_nodes_lists_mappings_and_args_are_built_first():
    inner = {"_target_": "torch.nn.ReLU"}
    node = {
        "_target_": path_of("Recorder"),
        "_args_": [inner],
        "node": inner,
        "listed": [1, inner],
        "mapped": {"a": {"b": inner}},
    }
    recorder = build(node, "task")
    built = [recorder.args[0], recorder.kwargs["node"], recorder.kwargs["listed"][1], recorder.kwargs["mapped"]["a"]["b"]]
    assert all(isinstance(each, nn.ReLU) for each in built)
    assert recorder.kwargs["listed"][0] == 1


def test_build_does_not_change_the_node():
    node = {"_target_": path_of("Recorder"), "nested": {"_target_": "torch.nn.ReLU"}}
    build(node, "task")
    assert node == {"_target_": path_of("Recorder"), "nested": {"_target_": "torch.nn.ReLU"}}


def test_directives_are_not_passed_as_arguments():
    recorder = build({"_target_": path_of("Recorder"), "_partial_": False}, "task")
    assert (recorder.args, recorder.kwargs) == ((), {})


def test_a_partial_node_returns_a_partial():
    call = build({"_target_": path_of("Recorder"), "_partial_": True, "_args_": [1], "rate": 2}, "task")
    assert isinstance(call, partial)
    recorder = call(3)
    assert (recorder.args, recorder.kwargs) == ((1, 3), {"rate": 2})


def test_a_partial_node_may_lack_arguments():
    call = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.25}, "optimizer")
    assert call([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 0.25


def test_arguments_of_a_partial_node_are_checked_against_the_signature():
    with pytest.raises(ConfigError, match=r"optimizer\.momentun.*did you mean momentum"):
        build({"_target_": "torch.optim.SGD", "_partial_": True, "momentun": 0.9}, "optimizer")


@pytest.mark.parametrize("path", ["torch.optim.SGD", "torch.optim.sgd.SGD", "torch.nn.functional.relu", "builtins.dict"])
def test_locate_returns_the_class_or_function_of_a_dotted_path(path):
    assert locate(path, "x._target_").__name__ == path.rpartition(".")[2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.optim.SDG", "torch.optim has no SDG; did you mean .*SGD"),
        ("torch.optmi.SGD", "torch has no optmi; did you mean .*optim"),
        ("torch.nn.Linear.forwards", "torch.nn.Linear has no forwards; did you mean .*forward"),
        ("torhc.optim.SGD", "no module 'torhc'"),
        ("SGD", "'SGD' is malformed; give the dotted path of a class or function, MODULE.NAME"),
        ("torch.pi", "torch.pi is a float; it must be a class or function"),
        ("torch.optim", "torch.optim is a module; it must be a class or function"),
    ],
)
def test_a_target_that_does_not_exist_is_an_error_with_similar_names(path, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build({"_target_": path}, "optimizer")
    assert str(caught.value).startswith("optimizer._target_: ")


@pytest.mark.parametrize("path", ["", ".", ".SGD", "torch.", "torch..SGD", "..", " torch.optim.SGD"])
def test_a_malformed_path_is_a_config_error(path):
    with pytest.raises(ConfigError, match=r"^optimizer\._target_"):
        build({"_target_": path}, "optimizer")


@pytest.mark.parametrize("node", [{}, {"lr": 0.1}, {"_target_": None}, {"_target_": 3}])
def test_a_node_without_a_target_is_an_error(node):
    with pytest.raises(ConfigError, match=r"optimizer\._target_ is .*; give the dotted path"):
        build(node, "optimizer")


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_wrong_arguments_are_an_error_before_the_target_is_called(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build({"_target_": path_of("must_not_be_called"), **arguments}, "task")


def test_an_error_in_a_nested_node_has_the_full_key():
    node = {"_target_": path_of("must_not_be_called"), "name": {"deep": [{"_target_": "torch.nn.ReLU", "inplaec": True}]}}
    with pytest.raises(
        ConfigError, match=r"^task\.name\.deep\[0\]\.inplaec: torch\.nn\.ReLU takes no inplaec; did you mean inplace"
    ):
        build(node, "task")


def test_a_text_is_accepted_if_no_number_is_expected():
    with pytest.raises(AssertionError, match="the target was called"):
        build({"_target_": path_of("must_not_be_called"), "size": 1, "name": "text"}, "task")


def test_an_error_of_a_library_becomes_a_config_error_with_that_cause():
    with pytest.raises(ConfigError, match=r"task: torch\.nn\.Dropout refused its arguments: dropout probability") as caught:
        build({"_target_": "torch.nn.Dropout", "p": 2}, "task")
    assert type(caught.value.__cause__) is ValueError


def test_an_error_of_any_type_of_a_library_becomes_a_config_error():
    with pytest.raises(ConfigError, match=r"^task: torch\.nn\.GroupNorm refused its arguments: .*zero") as caught:
        build({"_target_": "torch.nn.GroupNorm", "num_groups": 0, "num_channels": 4}, "task")
    assert type(caught.value.__cause__) is ZeroDivisionError


def test_a_target_that_skips_the_run_did_not_refuse_its_arguments():
    groups = [{"name": "body", "params": []}, {"name": "body/frozen", "params": []}]
    with pytest.raises(SkippedError):
        build({"_target_": "runner.training.optimizers.LBFGS"}, "optimizer", groups)


def test_a_config_error_of_the_target_is_passed_on_unchanged():
    with pytest.raises(ConfigError, match=r"^the exact message$"):
        build({"_target_": path_of("raise_config_error")}, "data")


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, AttributeError, ValueError])
def test_an_error_of_a_users_target_is_passed_on_unchanged(error):
    with pytest.raises(error) as caught:
        build({"_target_": path_of("raise_error"), "error": error.__name__}, "task")
    assert type(caught.value) is error
    assert caught.value.args == ("a bug of the user",)


@pytest.mark.parametrize("missing", ["no_such_library", "no_such_library.below", "broken_user_module_needs"])
def test_a_missing_import_of_a_users_module_is_named(missing, tmp_path, monkeypatch):
    (tmp_path / "broken_user_module.py").write_text(f"import {missing}\n\n\nclass Net: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"needs the module {missing.partition('.')[0]}, which is not installed"):
        build({"_target_": "broken_user_module.Net"}, "model.build")


def test_an_error_during_the_import_of_a_users_module_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "failing_user_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        build({"_target_": "failing_user_module.Net"}, "model.build")


def test_a_target_in_a_users_package_is_found_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "user_package").mkdir()
    (tmp_path / "user_package" / "__init__.py").write_text("")
    (tmp_path / "user_package" / "nets.py").write_text("class Net:\n    class Inner: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(build({"_target_": "user_package.nets.Net"}, "model.build")).__name__ == "Net"
    assert type(build({"_target_": "user_package.nets.Net.Inner"}, "model.build")).__name__ == "Inner"
    with pytest.raises(ConfigError, match="user_package has no netz; did you mean nets"):
        build({"_target_": "user_package.netz.Net"}, "model.build")


@pytest.mark.parametrize("other_class", [int, float])
def test_an_object_of_another_class_than_expected_is_an_error(other_class):
    with pytest.raises(
        ConfigError,
        match=r"^model\.build\._target_ gives a (int|float); it must give an instance of torch\.nn\.modules\.module\.Module",
    ):
        build_instance(torch.nn.Module, {"_target_": f"builtins.{other_class.__name__}"}, "model.build")
    assert isinstance(build_instance(torch.nn.Module, {"_target_": "torch.nn.ReLU"}, "model.build"), torch.nn.ReLU)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runner.models.MLP", "did you mean runner.training.models.MLP?"),
        ("runner.data.Synthetic", "did you mean runner.training.data.synthetic.Synthetic?"),
        ("runner.groups.by_role", "did you mean runner.freezing.groups.by_role?"),
        ("runner.methods.Exclude", "did you mean runner.methods.exclude.Exclude?"),
        ("runner.methods.zero_grd.ZeroGrad", "did you mean runner.methods.zero_grad.ZeroGrad?"),
        ("runner.training.models.MPL", "did you mean MLP?"),
        ("runner.trainin.models.Mine", "did you mean training or tracing?"),
    ],
)
def test_for_a_wrong_path_of_this_project_the_error_suggests_where_the_name_is(path, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build({"_target_": path}, "model.build")


# The call decides


def lying(**kwargs):
    """Take what the signature of `must_not_be_called` does not have."""
    return kwargs


lying.__signature__ = inspect.signature(must_not_be_called)


def passing_on(**kwargs):
    """Pass the arguments on, as the builders of libraries do; here it is the user's own code."""
    return must_not_be_called(**kwargs)


def test_a_call_that_succeeds_is_right_whatever_the_signature_says():
    assert build({"_target_": path_of("lying"), "num_labels": 7}, "task") == {"num_labels": 7}


def test_a_text_is_accepted_for_a_number_if_the_annotation_says_so():
    layer = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": "same"}
    assert build(layer, "task").padding == "same"


def test_a_type_error_within_a_users_code_is_passed_on_unchanged():
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        build({"_target_": path_of("passing_on"), "size": 1, "stepz": 2}, "task")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero_init_residua", r"model.zero_init_residua: ResNet takes no .*; did you mean model.zero_init_residual\?"),
        ("heads", r"model.heads: ResNet takes no heads; did you mean model.head\?"),
        ("xyzzy", r"model.xyzzy: ResNet takes no xyzzy$"),
    ],
)
def test_an_argument_that_a_library_passes_on_in_vain_is_named_with_the_nearest_names(name, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=rf"^{message}"):
        build({"_target_": "torchvision.models.resnet18", name: 1}, "model.build")


def test_the_error_of_any_installed_library_is_a_config_error_in_one_line():
    config = {"_target_": "transformers.GPT2Config", "summary_type": 3}
    with pytest.raises(
        ConfigError, match=r"^task: transformers.GPT2Config refused its arguments: .*'summary_type'"
    ) as caught:
        build(config, "task")
    assert "\n" not in str(caught.value)


def test_every_object_that_nested_nodes_give_is_converted():
    inner = {"_target_": "builtins.int", "_args_": [3]}
    node = {"_target_": path_of("Recorder"), "_args_": [inner], "deep": [{"a": inner}]}
    recorder = build_converted(node, "task", lambda built: -built if isinstance(built, int) else built)
    assert (recorder.args, recorder.kwargs) == ((-3,), {"deep": [{"a": -3}]})


def test_a_method_that_was_called_keeps_no_model_alive():
    model = nn.Linear(2, 2)
    call(model.float, "Linear.float", "model.then[0]", kwargs={})
    alive = weakref.ref(model)
    del model
    assert alive() is None

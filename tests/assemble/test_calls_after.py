"""What `model.then` calls after the build, and models with weights within other nodes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.assemble.calls_after import build_loaded, called_after
from runner.errors import ConfigError
from runner.training.pretrained.loaded import Loaded

HERE = "tests.assemble.test_calls_after"


class Net(nn.Module):
    """Two layers; its methods and the functions below say what they were called with."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 3)
        self.calls = []

    def mark(self, text="none"):
        self.calls.append(text)

    def first_layer(self):
        self.calls.append("first_layer")
        return self.body

    def fail(self):
        raise KeyError("a bug of the user")


def with_weights(new=("head.weight", "head.bias")):
    """Return a Net whose weights supplied all but `new`."""
    return Loaded(Net(), frozenset(new), ("a note",))


def wrapped(model, other=None):
    """Return a module that holds the model, and puts a layer around its head, as an adapter does."""
    model.head = nn.Sequential(model.head, nn.Linear(3, 3))
    return nn.ModuleDict({"inner": model})


def left_alone(model, text):
    """Call the model's method and return None."""
    model.mark(text)


def a_number(model):
    """Return no module."""
    return 3


def node(name, **arguments):
    """Return a config node whose target is in this file."""
    return {"_target_": f"{HERE}.{name}", **arguments}


def test_methods_and_targets_are_called_in_order():
    model = Net()
    then = ["mark", {"mark": {"text": "a"}}, node("left_alone", text="b"), {"mark": {}}]
    assert called_after(model, then) is model
    assert model.calls == ["none", "a", "b", "none"]


def test_a_target_returns_the_model_from_then_on_and_a_method_does_not():
    model = Net()
    after = called_after(model, ["first_layer", node("wrapped")])
    assert (type(after), after["inner"]) == (nn.ModuleDict, model)
    assert model.calls == ["first_layer"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("marc", r"^model.then\[0\]: Net has no method marc; did you mean mark\?"),
        ({"mark": {"txet": "a"}}, r"^model.then\[0\].txet: Net.mark takes no txet; did you mean text\?"),
        ({"mark": 3}, r"^model.then\[0\].mark is 3; give its arguments by name"),
        ({"mark": {}, "first_layer": {}}, r"^model.then\[0\] is .*; give a method's name"),
        (3, r"^model.then\[0\] is 3; give a method's name"),
        (node("a_number"), r"^model.then\[0\]: .*a_number gives a int; it must give a module or None"),
        (node("left_alone"), r"^model.then\[0\]: wrong arguments .* missing a required argument: 'text'"),
        ("body", r"^model.then\[0\]: Net has no method body"),
    ],
)
def test_what_cannot_be_called_is_refused(item, message):
    with pytest.raises(ConfigError, match=message):
        called_after(Net(), [item])


def test_a_method_that_a_wrapper_passes_on_is_called():
    model = Net()
    config = {"_target_": "peft.LoraConfig", "r": 2, "target_modules": ["body"]}
    adapters = {"_target_": "peft.get_peft_model", "peft_config": config}
    called_after(model, [adapters, {"mark": {"text": "after"}}])
    assert model.calls == ["after"]
    with pytest.raises(ConfigError, match=r"^model.then\[1\]: PeftModel has no method first_layr; did you mean first_layer"):
        called_after(Net(), [adapters, "first_layr"])
    with pytest.raises(ConfigError, match=r"^model.then\[1\]: PeftModel has no method body"):
        called_after(Net(), [adapters, "body"])


def test_an_error_of_a_users_method_is_passed_on_unchanged():
    with pytest.raises(KeyError, match="a bug of the user"):
        called_after(Net(), ["fail"])


@pytest.mark.parametrize("build", [node("with_weights"), node("wrapped", model=node("with_weights"))])
def test_what_weights_did_not_supply_is_known_by_identity_within_other_nodes_too(build):
    loaded = build_loaded(build, "model.build")
    found = {id(tensor) for name, tensor in loaded.model.named_parameters() if name in loaded.new}
    net = loaded.model if isinstance(loaded.model, Net) else loaded.model["inner"]
    head = net.head if isinstance(net.head, nn.Linear) else net.head[0]
    assert found == {id(head.weight), id(head.bias)}
    assert loaded.notes == ("a note",)


def test_without_weights_nothing_is_known_to_be_new():
    assert build_loaded(node("wrapped", model=node("Net")), "model.build").new is None
    assert build_loaded(node("wrapped", model=node("with_weights", new=[])), "model.build").new == frozenset()


def test_a_target_that_gives_no_module_is_refused():
    with pytest.raises(ConfigError, match=r"^model.build._target_ gives a int; it must give an instance of torch.nn.Module"):
        build_loaded(node("a_number", model=None), "model.build")


def test_a_peft_target_that_matches_no_module_is_refused_with_the_nearest_modules():
    config = {"_target_": "peft.LoraConfig", "r": 2, "target_modules": ["hed"]}
    with pytest.raises(
        ConfigError, match=r"^model.then\[0\]: peft.get_peft_model refused .*'hed'.*; did you mean head\?"
    ) as e:
        called_after(Net(), [{"_target_": "peft.get_peft_model", "peft_config": config}])
    assert "\n" not in str(e.value)


def test_a_peft_model_has_the_tensors_of_the_model_that_it_wraps():
    config = {"_target_": "peft.LoraConfig", "r": 2, "target_modules": ["body", "head"]}
    build = {"_target_": "peft.get_peft_model", "model": node("with_weights"), "peft_config": config}
    loaded = build_loaded(build, "model.build")
    assert loaded.new == {f"base_model.model.head.base_layer.{part}" for part in ("weight", "bias")}
    assert torch.is_tensor(loaded.model.base_model.model.head.lora_A["default"].weight)

"""Two objects have the same fingerprint only if they behave the same: every change of bits, attributes or code shows."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy
import pytest
import torch
from torch import nn

from runner.sharing.fingerprint import Fingerprint, NotComparableError
from tests.methods.prefix.shared import impure

SCALE = 2.0


def helper(x):
    return x * SCALE


class Body(nn.Module):
    """A module of a user, with a global in its code."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.options = {"names": ["a", "b"], "table": torch.arange(3), "array": numpy.arange(3)}

    def forward(self, x):
        return helper(self.norm(self.layer(x)))


@dataclass
class Options:
    """An object that is no module."""

    width: int = 3


def fingerprint(*values, outline=lambda part: False) -> str:
    own = Fingerprint(outline)
    for value in values:
        own.add(value)
    return own.hexdigest()


def body() -> Body:
    torch.manual_seed(0)
    return Body()


def test_a_copy_and_a_model_that_is_built_again_have_the_same_fingerprint():
    assert fingerprint(body()) == fingerprint(body()) == fingerprint(copy.deepcopy(body()))


def set_zero_sign(model):
    with torch.no_grad():
        model.layer.bias.zero_()
    model.layer.bias.data[0] = -0.0


CHANGES = {
    "a bit of a weight": lambda model: model.layer.weight.data.view(torch.int32)[0, 0].bitwise_xor_(1),
    "a bit of a buffer": lambda model: model.norm.running_mean.view(torch.int32)[0].bitwise_xor_(1),
    "a flag": lambda model: model.layer.weight.requires_grad_(False),
    "a mode": lambda model: model.norm.eval(),
    "an argument": lambda model: setattr(model.norm, "eps", 1e-6),
    "a dtype": lambda model: model.layer.double(),
    "an attribute in a dict": lambda model: model.options["names"].append("c"),
    "a tensor that is a plain attribute": lambda model: model.options["table"].add_(1),
    "an array": lambda model: model.options["array"].__iadd__(1),
    "a module": lambda model: setattr(model, "norm", nn.LayerNorm(3)),
    "a name": lambda model: model.add_module("other", model._modules.pop("norm")),
    "a tied weight": lambda model: setattr(model, "tied", model.layer.weight),
    "a hook": lambda model: model.layer.register_forward_hook(lambda *_: None),
    "a forward of the instance": lambda model: setattr(model.layer, "forward", partial(helper)),
    "strides": lambda model: setattr(model.layer.weight, "data", model.layer.weight.data.t().contiguous().t()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_of_a_module_shows(name):
    changed = body()
    CHANGES[name](changed)
    assert fingerprint(changed) != fingerprint(body())


def test_zeros_of_both_signs_differ():
    plus, minus = body(), body()
    plus.layer.bias.data.zero_()
    set_zero_sign(minus)
    assert fingerprint(plus) != fingerprint(minus)


def test_a_global_that_the_code_names_shows(monkeypatch):
    before = fingerprint(body())
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fingerprint(body()) != before


def test_a_function_that_the_code_calls_shows(monkeypatch):
    before = fingerprint(body())
    monkeypatch.setitem(globals(), "helper", lambda x: x * SCALE * 1)
    assert fingerprint(body()) != before


def test_an_attribute_of_the_class_and_a_method_of_a_base_class_show(monkeypatch):
    class Derived(Body):
        pass

    before = fingerprint(Derived())
    monkeypatch.setattr(Body, "steps", 1)
    assert fingerprint(Derived()) != before


def test_hooks_count_by_their_order_not_by_their_number():
    first, second = body(), body()
    nn.Linear(1, 1).register_forward_hook(helper)  # takes the next number
    for model in (first, second):
        model.layer.register_forward_hook(helper, with_kwargs=True)
        model.layer.register_forward_hook(copy.deepcopy, with_kwargs=False)
    assert fingerprint(first) == fingerprint(second)


def test_other_objects_count_by_their_class_and_state():
    assert fingerprint(Options(3)) == fingerprint(Options(3)) != fingerprint(Options(4))
    assert fingerprint({1, 2, 3}) == fingerprint({3, 2, 1}) != fingerprint({1, 2})
    assert fingerprint([1, 2]) != fingerprint((1, 2))
    assert fingerprint(1, 2) != fingerprint(12)
    assert fingerprint("1") != fingerprint(1) != fingerprint(1.0) != fingerprint(True)
    assert fingerprint(0.0) != fingerprint(-0.0)
    assert fingerprint([[1], 2]) != fingerprint([[1, 2]])


def test_a_generator_counts_by_its_state():
    generator, other = (torch.Generator().manual_seed(0) for _ in range(2))
    assert fingerprint(generator) == fingerprint(other)
    torch.rand(1, generator=other)
    assert fingerprint(generator) != fingerprint(other)


def test_a_cycle_ends():
    first, second = body(), body()
    for model in (first, second):
        model.options["owner"] = model
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.parametrize("part", [threading.Lock(), (each for each in ()), torch.eye(2).to_sparse()])
def test_what_cannot_be_compared_is_refused_with_its_place(part):
    model = body()
    model.options["part"] = part
    with pytest.raises(NotComparableError, match="options of a Body: "):
        fingerprint(model)


def test_the_outline_of_a_module_is_its_class_and_that_of_a_tensor_all_but_its_bits():
    first, second = body(), body()
    second.layer.weight.data.add_(1)
    second.norm.eps = 1.0
    outline = {id(part) for model in (first, second) for part in (model.layer.weight, model.norm)}
    assert fingerprint(first, outline=lambda part: id(part) in outline) == fingerprint(
        second, outline=lambda part: id(part) in outline
    )
    second.layer.weight.requires_grad_(False)
    assert fingerprint(first, outline=lambda part: id(part) in outline) != fingerprint(
        second, outline=lambda part: id(part) in outline
    )


@pytest.mark.long
def test_another_process_gives_the_same_fingerprints():
    script = (
        "import torch, torchvision, transformers\n"
        "from runner.sharing.fingerprint import Fingerprint\n"
        "from tests.sharing.test_fingerprint import body\n"
        "torch.manual_seed(0)\n"
        "config = transformers.BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9)\n"
        "models = (body(), torchvision.models.resnet18(), transformers.BertModel(config))\n"
        "print([Fingerprint().add(model).hexdigest() for model in models])"
    )
    outputs = {subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(outputs) == 1


@lru_cache
def remembered(x):
    return x * SCALE


def test_what_a_users_module_holds_shows_where_code_names_it(monkeypatch):
    def uses_a_module(x):
        return impure.FACTOR * x

    before = fingerprint(uses_a_module)
    monkeypatch.setattr(impure, "FACTOR", 5.0)
    assert fingerprint(uses_a_module) != before


def test_the_code_behind_a_cache_shows(monkeypatch):
    before = fingerprint(remembered)
    monkeypatch.setitem(globals(), "SCALE", 7.0)
    assert fingerprint(remembered) != before


def test_a_dict_that_contains_itself_is_refused_and_one_that_stands_twice_is_not():
    table: dict = {}
    assert fingerprint([table, table])
    table["self"] = table
    with pytest.raises(NotComparableError, match="contains itself"):
        fingerprint(table)


def imports_when_called(x):
    from tests.methods.prefix.shared import impure as one

    return x * one.FACTOR


def imports_a_name_when_called(x):
    from tests.methods.prefix.shared.impure import FACTOR

    return x * FACTOR


def imports_of_a_library(x):
    import math
    import xml.dom.minidom

    from torch.nn.functional import relu

    return relu(x) * math.pi, xml


def imports_what_is_not_loaded(x):
    import tests.methods.prefix.shared.no_such_module as other

    return other.f(x)


@pytest.mark.parametrize("function", [imports_when_called, imports_a_name_when_called])
def test_what_a_function_imports_when_it_is_called_shows(function, monkeypatch):
    before = fingerprint(function)
    monkeypatch.setattr(impure, "FACTOR", 2.0)
    assert fingerprint(function) != before


def test_a_function_that_imports_a_library_can_be_compared_and_one_that_imports_something_unknown_cannot():
    assert fingerprint(imports_of_a_library) == fingerprint(imports_of_a_library)
    with pytest.raises(NotComparableError, match="imports_what_is_not_loaded, which imports tests"):
        fingerprint(imports_what_is_not_loaded)


@pytest.mark.parametrize(
    ("owner", "name"), [(nn.ReLU, "forward"), (nn.Module, "__call__"), (nn.functional, "relu"), (torch.Tensor, "mul")]
)
@pytest.mark.parametrize("wrapped", [lambda function: function, partial, staticmethod])
def test_a_function_of_the_user_in_the_place_of_a_librarys_shows(owner, name, wrapped, monkeypatch):
    before = fingerprint(nn.Sequential(nn.ReLU()))
    seen = {before}
    for slope in (0.0, 0.5):
        monkeypatch.setattr(owner, name, wrapped(lambda x, *_, slope=slope: x * slope))
        seen.add(fingerprint(nn.Sequential(nn.ReLU())))
    assert len(seen) == 3
    monkeypatch.undo()
    assert fingerprint(nn.Sequential(nn.ReLU())) == before


def test_functions_that_differ_in_how_they_take_arguments_or_handle_errors_differ():
    sources = (
        *("def f(a, /, b=2): return a", "def f(a, b=2): return a", "def f(a, *, b=2): return a"),
        "def f(x):\n r = 0\n try:\n  r = g(x)\n  r = h(x)\n except Exception:\n  r = 1\n return r",
        "def f(x):\n r = 0\n r = g(x)\n try:\n  r = h(x)\n except Exception:\n  r = 1\n return r",
    )
    made = []
    for source in sources:
        space = {"__name__": "users"}
        exec(source, space)
        made.append(fingerprint(space["f"]))
    assert len(set(made)) == len(made)


class HidesState:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __getstate__(self):
        return {}


def test_what_an_object_leaves_out_when_it_is_pickled_shows():
    assert fingerprint(HidesState(1.0)) != fingerprint(HidesState(2.0))

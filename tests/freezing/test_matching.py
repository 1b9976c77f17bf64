"""Patterns match names with and without the parts that wrappers add; an exact name means itself alone."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from runner import audit
from runner.errors import ConfigError
from runner.freezing.groups import by_module
from runner.freezing.matching import Matching
from runner.freezing.selection import select
from tests.freezing.parts.peft_models import BLOCK, peft_model

C_ATTN = f"{BLOCK.format(0)}.attn.c_attn"


def frozen(model: nn.Module, *patterns: str) -> list[str]:
    """Return the names of the parameters that the patterns select."""
    return list(select(model, patterns).parameters)


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.", "base_model.model."])
def test_a_layer_in_a_peft_model_is_named_as_in_the_plain_model(prefix):
    model = peft_model("lora")
    base = [f"{C_ATTN}.base_layer.weight", f"{C_ATTN}.base_layer.bias"]
    name = f"{prefix}transformer.h.0.attn.c_attn"
    assert frozen(model, f"{name}.weight") == base[:1]
    assert frozen(model, f"{name}.base_layer") == base
    assert frozen(model, name) == [*base, f"{C_ATTN}.lora_A.default.weight", f"{C_ATTN}.lora_B.default.weight"]


def test_wildcards_and_regular_expressions_look_through_wrappers_too():
    model = peft_model("lora")
    weights = [f"{BLOCK.format(number)}.attn.c_attn.base_layer.weight" for number in (0, 1)]
    assert frozen(model, "transformer.h.*.attn.c_attn.weight") == weights
    assert frozen(model, r"re:transformer\.h\.\d\.attn\.c_attn\.weight") == weights
    assert frozen(model, "re:.*c_attn.base_layer.weight") == weights


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("prompt", "base_model.transformer.wte.weight"),  # peft keeps the prompts beside `base_model`
        ("lora_table", "base_model.model.transformer.wte.base_layer.weight"),
        ("ia3", "base_model.model.transformer.wte.weight"),
    ],
)
def test_the_table_of_tokens_has_its_name_under_every_kind_of_adapter(kind, expected):
    assert frozen(peft_model(kind), "transformer.wte.weight") == [expected]


class Sharded(nn.Module):
    """A wrapper that calls the module in it as FSDP does, and looks up missing attributes in it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_fsdp_wrapped_module"), name)


class Forwarding(Sharded):
    """A wrapper of one's own, which has its own name for the module in it."""

    def __init__(self, inner: nn.Module) -> None:
        nn.Module.__init__(self)
        self.inner = inner


class Lightning(nn.Module):
    """A module with a model in it and nothing else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, checkpoint_wrapper, Sharded, Forwarding, Lightning])
def test_each_wrapper_is_looked_through_around_the_model_and_in_it(wrap):
    def model() -> nn.Module:
        return nn.Sequential(OrderedDict(body=nn.Linear(2, 2), fc=nn.Linear(2, 2)))

    outer, inner = wrap(model()), model()
    inner.fc = wrap(inner.fc)
    for each in (outer, inner):
        assert [name.rpartition(".")[2] for name in frozen(each, "fc")] == ["weight", "bias"]
        (weight,) = frozen(each, "fc.weight")
        assert frozen(each, weight) == [weight]
        assert Matching(each).without_wrappers(weight) == "fc.weight"


class Own(nn.Module):
    """A module of the user with a child called `model` beside another one."""

    def __init__(self, child: str) -> None:
        super().__init__()
        self.add_module(child, nn.Sequential(OrderedDict(layer=nn.Linear(2, 2), fc=nn.Linear(2, 2))))
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("child", ["model", "module", "base_model", "_orig_mod"])
def test_a_module_with_other_children_or_parameters_is_no_wrapper(child):
    beside_parameters = Lightning(nn.Linear(2, 2))
    beside_parameters.scale = nn.Parameter(torch.ones(1))
    for model, pattern in ((Own(child), "layer"), (beside_parameters, "weight")):
        with pytest.raises(ConfigError, match="matches no parameter"):
            select(model, [pattern])


@pytest.mark.parametrize("names", [("model", "module"), ("inner", "head")])
def test_a_module_with_two_children_is_no_wrapper_even_if_it_looks_up_attributes_elsewhere(names):
    model = Forwarding(nn.Linear(2, 2))
    model._modules.clear()
    for name in names:
        model.add_module(name, nn.ModuleDict({"layer": nn.Linear(2, 2)}))
    with pytest.raises(ConfigError, match="matches no parameter"):
        select(model, ["layer"])


def test_an_exact_name_means_itself_and_nothing_that_is_called_so_without_wrappers():
    nested = Lightning(Lightning(nn.Sequential(OrderedDict(model=nn.Linear(2, 2), fc=nn.Linear(2, 2)))))
    assert frozen(nested, "model.model.model") == ["model.model.model.weight", "model.model.model.bias"]
    assert len(frozen(nested, "model")) == 4
    adapted = nn.ModuleDict({"base_layer": nn.ModuleDict({"fc": nn.Linear(2, 2)}), "fc": nn.Linear(2, 2)})
    assert frozen(adapted, "fc") == ["fc.weight", "fc.bias"]
    assert frozen(adapted, "base_layer.fc.weight") == ["base_layer.fc.weight"]


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_audits_and_groups_take_names_without_wrappers_and_give_names_with_them(wrap):
    model = wrap(peft_model("lora"))
    prefix = "module." if isinstance(model, nn.DataParallel) else ""
    names = ["transformer.h.0.attn.c_attn.weight", "transformer.wpe"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, names, optimizer) as report:
        tokens = torch.arange(6).view(2, 3)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        report.unfreeze(["transformer.wpe.weight"])
    frozen = {row["name"]: row["verdict"] for row in report.rows if row["frozen"]}
    wpe, weight = "base_model.model.transformer.wpe.weight", f"{C_ATTN}.base_layer.weight"
    assert frozen == {prefix + wpe: "held", prefix + weight: "held"}
    group, rest = by_module(model, select(model, []), names=[names[0], "**"])
    assert group["params"] == [model.get_parameter(prefix + weight)]
    assert group["name"] == names[0]
    assert len(rest["params"]) == len(list(model.parameters())) - 1


def test_near_names_leave_wrappers_out():
    with pytest.raises(ConfigError, match=r"did you mean transformer\.h\.0\.attn\.c_attn or ") as caught:
        select(peft_model("lora"), ["transformer.h.0.attn.c_atn"])
    assert "base_" not in str(caught.value)

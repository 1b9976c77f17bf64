"""Named parts in general: their names, and where a config and Python may use them."""

from __future__ import annotations

from torch import nn

from runner.freezing.groups import by_module, split_by_lr
from runner.freezing.parts import PARTS
from runner.freezing.patterns import PART_NAMES
from runner.freezing.selection import select


def test_each_part_that_a_pattern_may_name_can_be_found_and_no_other():
    assert {*PART_NAMES} == {*PARTS}


def test_parts_are_frozen_kept_and_grouped():
    model = nn.ModuleDict({"words": nn.Embedding(4, 2), "mix": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    assert list(select(model, ["@norms", "@embeddings"]).parameters) == ["words.weight", "norm.weight", "norm.bias"]
    selection = select(model, ["**"], keep=["@norms"])
    assert list(selection.parameters) == ["words.weight", "mix.weight", "mix.bias"]
    norms, embeddings = by_module(model, selection, names=["@norms", "@embeddings"])
    assert norms["params"] == [model["norm"].weight, model["norm"].bias]
    assert embeddings["params"] == [model["words"].weight]
    everything = [{"name": "all", "params": list(model.parameters())}]
    rest, rated = split_by_lr(everything, model, selection, [("@norms", 0.5)])[::-1][:2][::-1]
    groups = {group["name"]: group.get("lr") for group in (rest, rated)}
    assert groups == {"all": None, "all/@norms": 0.5}

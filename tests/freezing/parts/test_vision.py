"""`@vision`: the part that takes the picture of a batch, where the model takes something else too."""

from __future__ import annotations

import pytest
from torch import nn

from runner.errors import ConfigError
from runner.freezing.parts.evidence import Evidence, Trial
from runner.freezing.patterns import parse
from runner.freezing.selection import select, select_by_evidence
from runner.freezing.words import FOR_PYTHON
from tests.freezing.parts.tiny_models import tiny


def by_evidence(model, text, evidence):
    """Return the Selection of one pattern, with parts found by this evidence."""
    pattern = parse(text, "patterns")
    return select_by_evidence(model, [pattern], [], with_modules=False, evidence=evidence, words=FOR_PYTHON)


def modules_found(model: nn.Module, trial: Trial | None) -> set[str]:
    """Return the names of the modules that have a parameter which `@vision` selects."""
    return {name.rpartition(".")[0] for name in by_evidence(model, "@vision", Evidence(trial=trial)).parameters}


def two_towers() -> nn.Module:
    """Return a model with a part for pictures and a part for words."""
    eye = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    return nn.ModuleDict({"both": nn.ModuleDict({"eye": eye, "ear": nn.Linear(2, 2)}), "head": nn.Linear(2, 2)})


def test_the_outermost_module_that_takes_the_picture_and_nothing_else_of_the_batch_is_the_part():
    trial = Trial(takes_picture=("", "both", "both.eye", "both.eye.0"), takes_other=("", "both", "both.ear"))
    assert modules_found(two_towers(), trial) == {"both.eye.0", "both.eye.1"}


def test_where_the_picture_is_the_only_input_the_part_is_refused():
    trial = Trial(takes_picture=("", "both", "both.eye"))
    expected = r"^@vision: the picture is the model's only input, so all of the model is for it; write \*\*$"
    with pytest.raises(ConfigError, match=expected):
        modules_found(two_towers(), trial)
    with pytest.raises(ConfigError, match=expected):
        modules_found(tiny("vit"), None)


@pytest.mark.parametrize("trial", [Trial(takes_other=("",)), Trial(takes_picture=("",), takes_other=("",)), None])
def test_where_no_module_takes_the_picture_alone_the_part_is_refused(trial):
    with pytest.raises(
        ConfigError, match=r"^patterns: '@vision' matches no parameter: no module takes the picture of a batch"
    ):
        modules_found(two_towers(), trial)


@pytest.mark.parametrize(("name", "expected"), [("clip", "vision_model."), ("vilt", "vilt.embeddings.patch_embeddings.")])
def test_without_a_trial_the_names_of_the_arguments_of_forward_say_it(name, expected):
    parameters = select(tiny(name), ["@vision"]).parameters
    assert all(each.startswith(expected) for each in parameters)
    assert len(parameters) == sum(each.startswith(expected) for each, _ in tiny(name).named_parameters())

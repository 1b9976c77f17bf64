"""`@adapters` and `@as_built`: what the builder of a model left trainable, and what it froze."""

from __future__ import annotations

import pytest
from torch import nn

from runner.errors import ConfigError
from runner.freezing.parts.evidence import Evidence, Trial
from runner.freezing.patterns import parse
from runner.freezing.selection import select, select_by_evidence, select_by_flags, trainable_names
from runner.freezing.words import FOR_PYTHON
from tests.freezing.parts.peft_models import BLOCK, peft_model

LORA = [f"{BLOCK.format(number)}.attn.c_attn.{part}.default.weight" for number in (0, 1) for part in ("lora_A", "lora_B")]
DORA = [
    f"{BLOCK.format(number)}.attn.c_attn.{part}.default.weight"
    for number in (0, 1)
    for part in ("lora_A", "lora_B", "lora_magnitude_vector")
]
IA3 = [f"{BLOCK.format(number)}.{layer}.ia3_l.default" for number in (0, 1) for layer in ("attn.c_attn", "mlp.c_proj")]
ADAPTERS = {"lora": LORA, "dora": DORA, "ia3": IA3, "prompt": ["prompt_encoder.default.embedding.weight"], "lora_head": LORA}


def by_evidence(model, text, evidence):
    """Return the Selection of one pattern, with parts found by this evidence."""
    pattern = parse(text, "patterns")
    return select_by_evidence(model, [pattern], [], with_modules=False, evidence=evidence, words=FOR_PYTHON)


@pytest.mark.parametrize(("kind", "expected"), ADAPTERS.items())
def test_the_adapters_of_peft_are_found_without_the_head(kind, expected):
    assert list(select(peft_model(kind), ["@adapters"]).parameters) == expected


@pytest.mark.parametrize("head", ["score", "base_model.model.score", "**.score", "type:ModulesToSaveWrapper"])
def test_the_head_that_is_left_out_is_given_as_any_pattern_or_shown_by_a_trial(head):
    model = peft_model("lora_head")
    assert list(select(model, ["@adapters"], head=head).parameters) == LORA
    evidence = Evidence(trial=Trial(heads=(head,)), trainable=trainable_names(model))
    assert list(by_evidence(model, "@adapters", evidence).parameters) == LORA


def test_where_the_head_is_not_known_nothing_is_left_out():
    model = peft_model("lora_head")
    evidence = Evidence(trial=Trial(problem="nobody knows"), trainable=trainable_names(model))
    found = list(by_evidence(model, "@adapters", evidence).parameters)
    assert found == [*LORA, "base_model.model.score.modules_to_save.default.weight"]


def bottleneck() -> nn.Module:
    """Return a frozen layer, a bottleneck adapter and a new head."""
    adapter = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))
    model = nn.Sequential(nn.Linear(4, 4), adapter, nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def test_the_adapters_of_ones_own_are_found_by_the_flags_too():
    assert list(select(bottleneck(), ["@adapters"]).parameters) == ["1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"]


def test_flags_that_were_set_after_the_build_do_not_matter():
    model = bottleneck()
    evidence = Evidence(trainable=trainable_names(model))
    model.requires_grad_(True)
    assert len(by_evidence(model, "@adapters", evidence).parameters) == 4
    assert list(by_evidence(model, "@as_built", evidence).parameters) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("trains", [True, False])
def test_a_model_whose_builder_froze_nothing_or_everything_has_no_adapters(trains):
    expected = "^patterns: '@adapters' matches no parameter: its builder froze nothing, or left nothing trainable beside the"
    with pytest.raises(ConfigError, match=expected):
        select(bottleneck().requires_grad_(trains), ["@adapters"])


# As built


def test_as_built_is_what_the_flags_say_tied_names_included():
    model = peft_model("lora")
    by_flags, as_built = select_by_flags(model), select(model, ["@as_built"])
    assert as_built.parameters == by_flags.parameters
    assert {"base_model.model.lm_head.weight", "base_model.model.transformer.wte.weight"} <= as_built.names
    assert as_built.notes == ()


def test_a_model_that_its_builder_left_trainable_is_not_frozen_and_a_note_says_so():
    selection = select(nn.Linear(2, 2), ["@as_built"])
    assert selection.parameters == {}
    assert selection.notes == ("@as_built freezes nothing: no parameter has requires_grad=False as built",)
    assert list(select(nn.Linear(2, 2), ["@as_built", "bias"]).parameters) == ["bias"]

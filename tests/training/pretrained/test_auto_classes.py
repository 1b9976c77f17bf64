"""What the Auto classes cannot build is refused with what to give in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from runner.errors import ConfigError
from runner.training.pretrained.auto_classes import refuse_adapters, refuse_other_class
from runner.training.pretrained.huggingface_models import huggingface_model


def test_an_auto_class_for_other_models_is_refused_with_those_that_fit():
    with pytest.raises(ConfigError) as refused:
        refuse_other_class(transformers.AutoModelForSequenceClassification, transformers.ViTConfig())
    assert str(refused.value) == (
        "model.auto is AutoModelForSequenceClassification, and transformers has no such model of the type vit; it has "
        "AutoModel, AutoModelForImageClassification and AutoModelForMaskedImageModeling"
    )
    refuse_other_class(transformers.AutoModelForImageClassification, transformers.ViTConfig())


def test_the_classes_of_a_config_with_code_of_its_own_are_not_known():
    config = transformers.ViTConfig(auto_map={"AutoModelForSequenceClassification": "mine.Model"})
    refuse_other_class(transformers.AutoModelForSequenceClassification, config)


@pytest.mark.parametrize(
    ("arguments", "key"), [({"name": "adapter"}, "model.name"), ({"name": "base", "weights": "adapter"}, "model.weights")]
)
def test_a_folder_with_an_adapter_alone_is_refused_with_the_call_that_loads_it(arguments, key):
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=rf"{key} is 'adapter', a peft adapter without .*PeftModel.*model_id: adapter, is_train"
    ):
        huggingface_model(**arguments)
    Path("adapter/config.json").write_text("{}")
    refuse_adapters({key: "adapter"})

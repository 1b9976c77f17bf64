"""Models of transformers: from a config alone, and from folders, with what the weights did not supply."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from runner.errors import ConfigError
from runner.training.pretrained.huggingface_models import huggingface_model

ROBERTA = {
    **{"model_type": "roberta", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 16, "vocab_size": 50},
}
CLASSIFIER = "AutoModelForSequenceClassification"
HEAD = {f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")}


@pytest.fixture
def base():
    """Save a tiny RoBERTa without a head, and return its folder."""
    AutoModel.from_config(AutoConfig.for_model(**ROBERTA)).save_pretrained("base")
    return "base"


@pytest.fixture
def classifier():
    """Save a tiny RoBERTa that sorts texts into five classes, and return its folder."""
    config = AutoConfig.for_model(**ROBERTA, num_labels=5)
    AutoModelForSequenceClassification.from_config(config).save_pretrained("classifier")
    return "classifier"


@pytest.fixture
def detr():
    """Save a tiny detector of four classes that loads no backbone, and return its folder."""
    from transformers import AutoModelForObjectDetection

    yolos = {"model_type": "yolos", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 4}
    sizes = {"intermediate_size": 16, "image_size": [32, 32], "patch_size": 16, "num_detection_tokens": 5}
    AutoModelForObjectDetection.from_config(AutoConfig.for_model(**yolos, **sizes)).save_pretrained("detector")
    return "detector"


def test_a_config_alone_gives_a_model_with_random_values():
    loaded = huggingface_model(auto=CLASSIFIER, config=ROBERTA, classes=3)
    assert type(loaded.model).__name__ == "RobertaForSequenceClassification"
    assert (loaded.model.config.hidden_size, loaded.model.classifier.out_proj.out_features) == (16, 3)
    assert (loaded.new, loaded.notes) == (None, ())


def test_what_the_weights_did_not_supply_is_new_and_noted(base, capfd):
    loaded = huggingface_model(base, auto=CLASSIFIER)
    assert loaded.new == HEAD
    assert loaded.notes == (
        "model.weights did not supply classifier.dense and classifier.out_proj: they begin with random values; "
        "model.head=new trains exactly these",
        "model.weights have 2 tensors that the model has not: pooler.dense.bias and pooler.dense.weight",
    )
    values = AutoModel.from_pretrained(base).state_dict()
    now = {name: value for name, value in loaded.model.state_dict().items() if name not in HEAD}
    assert all(torch.equal(value, values[name.removeprefix("roberta.")]) for name, value in now.items())
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_other_classes_than_the_weights_have_a_new_last_layer(classifier):
    assert huggingface_model(classifier, auto=CLASSIFIER).new == frozenset()
    for given in ({"classes": 7}, {"config": {"num_labels": 7}}):
        loaded = huggingface_model(classifier, auto=CLASSIFIER, **given)
        assert loaded.new == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert loaded.model.classifier.out_proj.out_features == 7


def test_a_detector_may_make_one_number_more_than_its_classes(detr):
    from transformers import AutoModelForObjectDetection

    loaded = huggingface_model(detr, auto=AutoModelForObjectDetection.__name__, classes=3)
    assert loaded.new == {f"class_labels_classifier.layers.2.{part}" for part in ("weight", "bias")}


@pytest.mark.parametrize("classes", [3, 5, None])
@pytest.mark.parametrize("config", [{"hidden_size": 8}, {"max_position_embeddings": 3}, {"vocab_size": 10}])
def test_weights_of_other_shapes_than_the_config_are_refused(classifier, config, classes):
    with pytest.raises(ConfigError, match=r"^model.weights: \d+ tensors are of another shape: .* in them, ") as refused:
        huggingface_model(classifier, auto=CLASSIFIER, config=config, classes=classes)
    assert len(str(refused.value)) <= 390


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("typo", [{"num_lables": 7}, {"num_lables": 7, "num_labels": 7}])
def test_a_key_that_the_config_does_not_have_is_refused_with_the_nearest_names(base, typo, is_named):
    name, config = (base, {}) if is_named else (None, ROBERTA)
    with pytest.raises(ConfigError, match=r"^model.config.num_lables: RobertaConfig of .* did you mean num_labels\?$"):
        huggingface_model(name, auto=CLASSIFIER, config={**config, **typo})


@pytest.mark.parametrize("is_named", [True, False])
def test_a_key_of_no_known_name_is_kept_and_noted(base, is_named):
    name, config = (base, {}) if is_named else (None, ROBERTA)
    loaded = huggingface_model(name, auto=CLASSIFIER, config={**config, "decoder_start_token_id": 3})
    assert loaded.model.config.decoder_start_token_id == 3
    assert "model.config: RobertaConfig of transformers has no decoder_start_token_id; it is kept" in loaded.notes


def test_the_librarys_own_name_of_the_number_of_classes_is_refused(base):
    with pytest.raises(ConfigError, match=r"num_labels.*model\.classes"):
        huggingface_model(base, auto=CLASSIFIER, num_labels=7)


def test_a_key_within_a_config_of_a_part_is_checked_too():
    with pytest.raises(ConfigError, match=r"^model.config.text_config.hiden_size: CLIPTextConfig .* mean hidden_size "):
        huggingface_model(config={"model_type": "clip", "text_config": {"hiden_size": 3}})


@pytest.mark.parametrize(
    "config",
    [
        {**ROBERTA, "num_labels": 7, "attn_implementation": "eager", "output_attentions": True, "dtype": "float32"},
        {"model_type": "gpt2", "hidden_size": 8, "n_layer": 1, "n_head": 1, "vocab_size": 5},  # another name for n_embd
        {"model_type": "llama", "rope_theta": 500.0, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    ],
)
def test_keys_that_a_signature_does_not_list_are_taken(config):
    huggingface_model(config=config)


def test_the_config_of_a_name_can_be_taken_without_its_weights_or_with_those_of_another(base, classifier):
    assert huggingface_model(classifier, None, auto=CLASSIFIER).new is None
    assert huggingface_model(base, classifier, auto=CLASSIFIER, classes=5).new == frozenset()
    assert huggingface_model(weights=classifier, auto=CLASSIFIER).model.config.num_labels == 5


@pytest.mark.parametrize("weights", [True, None])
def test_an_option_of_the_config_may_be_given_in_it_or_beside_it(weights, base):
    beside = huggingface_model(base, weights, hidden_dropout_prob=0.25).model
    within = huggingface_model(base, weights, config={"hidden_dropout_prob": 0.25}).model
    assert beside.config.hidden_dropout_prob == within.config.hidden_dropout_prob == 0.25
    assert beside.encoder.layer[0].output.dropout.p == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"model=huggingface needs a model; give model.name=NAME"),
        ({"auto": "AutoModelForCausalML"}, r"model.auto is .*no such Auto class; did you mean AutoModelForCausalLM"),
        ({"config": {"model_type": "gtp2"}}, r"model.config.model_type is 'gtp2': .*; did you mean gpt2"),
        ({"name": "no/such/folder"}, r"model.name is 'no/such/folder', which is no folder; give one that save_pretrained"),
        ({"config": ROBERTA, "weights": "./nothing"}, r"model.weights is './nothing', which is no folder"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_names(options, message):
    with pytest.raises(ConfigError, match=message):
        huggingface_model(**options)


def test_neither_a_config_alone_nor_a_folder_asks_the_hub(base, monkeypatch):
    monkeypatch.setattr("socket.create_connection", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    huggingface_model(config=ROBERTA)
    huggingface_model(base)

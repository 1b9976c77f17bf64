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
    )
    values = AutoModel.from_pretrained(base).state_dict()
    now = {name: value for name, value in loaded.model.state_dict().items() if name not in HEAD}
    assert all(torch.equal(value, values[name.removeprefix("roberta.")]) for name, value in now.items())
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_other_classes_than_the_weights_have_a_new_last_layer(classifier):
    assert huggingface_model(classifier, auto=CLASSIFIER).new == frozenset()
    loaded = huggingface_model(classifier, auto=CLASSIFIER, classes=7)
    assert loaded.new == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert loaded.model.classifier.out_proj.out_features == 7


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

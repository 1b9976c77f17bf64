"""The task with models of transformers: tiny ones, built without a download."""

from __future__ import annotations

import pytest
import torch

from runner.errors import ConfigError
from runner.training.tasks.task import BatchTask

pytestmark = pytest.mark.long

IDS = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
CLASSES = torch.tensor([0, 2])
CAUSAL = {"loss": "cross_entropy", "shift": True}
SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def model_named(name, **options):
    """Return a tiny model of this class in eval mode, so that dropout does not change its loss."""
    import transformers

    config = getattr(transformers, name.split("For")[0].removesuffix("LMHeadModel").removesuffix("Model") + "Config")
    gpt2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return getattr(transformers, name)(config(**(gpt2 if name.startswith("GPT2") else SMALL), **options)).eval()


def encoding(**fields):
    """Return the mapping that a tokenizer of transformers returns."""
    import transformers

    return transformers.BatchEncoding(fields)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
@pytest.mark.parametrize(
    ("batch", "options"),
    [
        ({"input_ids": IDS, "attention_mask": MASK, "labels": IDS, "text": ["a", "b"]}, {}),
        ({"input_ids": IDS, "labels": IDS}, {"loss": "model"}),
        ({"input_ids": IDS, "attention_mask": MASK, "labels": IDS}, CAUSAL),
        ({"input_ids": IDS, "attention_mask": MASK}, CAUSAL),
        ((IDS, IDS), CAUSAL),
        (IDS, CAUSAL),
        ((IDS, MASK, IDS), {"fields": {0: "input_ids", 1: "attention_mask", 2: "labels"}}),
        ((IDS, MASK, IDS), {"fields": {0: "input_ids", 1: "attention_mask"}, **CAUSAL}),
    ],
    ids=lambda value: "",
)
def test_a_causal_model_has_the_loss_of_the_next_token(name, batch, options):
    model = model_named(name)
    expected = model(input_ids=IDS, labels=IDS).loss
    given = encoding(**batch) if isinstance(batch, dict) else batch
    assert torch.allclose(BatchTask(**options)(model, given), expected)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
@pytest.mark.parametrize(
    ("batch", "options", "words"),
    [
        ((IDS, MASK, IDS), {}, r"task\.call=args task\.target=-1"),
        (
            (IDS, MASK, IDS),
            {"call": "args", "target": -1},
            r"task=causal_lm|task\.fields=\{0: input_ids, 1: att",
        ),
        ((IDS, IDS), {}, r"task=causal_lm"),
        ({"input_ids": IDS}, {}, r"which is no loss.*task=causal_lm"),
        ({"input_ids": IDS + 32, "labels": IDS}, {}, r"^data: an input is outside an embedding"),
        ({"input_ids": IDS, "labels": IDS + 32}, {}, r"^data: a target is outside the classes"),
    ],
    ids=lambda value: "",
)
def test_a_causal_model_that_would_learn_something_else_is_refused(name, batch, options, words):
    with pytest.raises(ConfigError, match=words):
        BatchTask(**options)(model_named(name), encoding(**batch) if isinstance(batch, dict) else batch)


@pytest.mark.parametrize("field", ["labels", "label"])
@pytest.mark.parametrize("loss", ["auto", "cross_entropy"])
def test_a_model_that_classifies_texts_has_scores_for_the_accuracy(field, loss):
    model = model_named("BertForSequenceClassification", num_labels=3)
    result = BatchTask(loss=loss).run(model, encoding(input_ids=IDS, attention_mask=MASK, **{field: CLASSES}))
    assert torch.allclose(result.loss, model(input_ids=IDS, attention_mask=MASK, labels=CLASSES).loss)
    assert (result.scores.shape, result.target.tolist()) == ((2, 3), [0, 2])


def test_tags_of_tokens_are_those_of_their_own_positions():
    model, tags = model_named("BertForTokenClassification", num_labels=3), IDS % 3
    result = BatchTask(loss="cross_entropy").run(model, encoding(input_ids=IDS, labels=tags))
    assert torch.allclose(result.loss, model(input_ids=IDS, labels=tags).loss)
    assert result.scores.shape == (2, 3, 8)


def test_a_model_for_pictures_takes_fields_of_other_names_once_they_are_mapped():
    model = model_named("ViTForImageClassification", num_labels=5, image_size=32, patch_size=16)
    pictures = torch.rand(2, 3, 32, 32)
    with pytest.raises(ConfigError, match=r"the fields image and label, .*task\.fields=\{image: pixel_values\}"):
        BatchTask()(model, {"image": pictures, "label": CLASSES})
    expected = model(pixel_values=pictures, labels=CLASSES).loss
    for batch, fields in (({"image": pictures, "label": CLASSES}, {"image": "pixel_values"}), ((pictures, CLASSES), None)):
        assert torch.allclose(BatchTask(fields=fields)(model, batch), expected)

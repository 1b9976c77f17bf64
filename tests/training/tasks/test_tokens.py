"""Token models: the target of a batch without one, and the shift to the next token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from runner.errors import ConfigError
from runner.training.tasks.task import BatchTask

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LABELS = IDS.masked_fill(MASK == 0, -100)


class Tokens(nn.Module):
    """A causal model of 7 tokens that returns its logits in an object, beside a cache."""

    def __init__(self, wrap=lambda logits: SimpleNamespace(loss=None, logits=logits, cache=[logits])):
        super().__init__()
        self.embedding, self.head, self.wrap = nn.Embedding(7, 5), nn.Linear(5, 7), wrap

    def forward(self, input_ids, attention_mask=None, labels=None):
        assert labels is None, "the task computes the loss, the same one for every model"
        return self.wrap(self.head(self.embedding(input_ids)))


def next_token_loss(model, target):
    logits = model.head(model.embedding(IDS))
    return functional.cross_entropy(logits[:, :-1].reshape(-1, 7), target[:, 1:].reshape(-1))


CAUSAL = BatchTask(loss="cross_entropy", shift=True)


@pytest.mark.parametrize(
    ("batch", "target"),
    [
        ({"input_ids": IDS}, IDS),
        ({"input_ids": IDS, "attention_mask": MASK}, LABELS),
        ({"input_ids": IDS, "attention_mask": MASK, "labels": IDS}, IDS),
        ({"input_ids": IDS, "labels": LABELS}, LABELS),
        ((IDS, LABELS), LABELS),
        ((IDS,), IDS),
        (IDS, IDS),
    ],
    ids=lambda value: "",
)
@pytest.mark.parametrize(
    "wrap", [None, lambda logits: logits, lambda logits: (logits, None)], ids=["object", "tensor", "tuple"]
)
def test_each_position_is_compared_with_the_next_token(batch, target, wrap):
    model = Tokens(wrap) if wrap else Tokens()
    result = CAUSAL.run(model, batch)
    assert torch.allclose(result.loss, next_token_loss(model, target))
    assert (result.scores.shape, result.target.tolist()) == ((2, 7, 3), target[:, 1:].tolist())


def test_the_number_of_classes_may_be_that_of_the_positions():
    model, ids = Tokens(), torch.randint(7, (2, 8))
    logits = model.head(model.embedding(ids))[:, :-1]
    result = CAUSAL.run(model, (ids, ids))
    assert torch.allclose(result.loss, functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    assert torch.equal(result.scores, logits.transpose(1, 2))


def test_any_loss_may_be_that_of_the_next_token():
    model = Tokens()
    task = BatchTask(loss=nn.CrossEntropyLoss(label_smoothing=0.1), shift=True)
    logits = model.head(model.embedding(IDS))[:, :-1]
    expected = functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), label_smoothing=0.1)
    assert torch.allclose(task(model, IDS), expected)


def test_without_the_shift_each_label_belongs_to_its_own_token():
    model, tags = Tokens(), torch.randint(7, (2, 4))
    result = BatchTask(loss="cross_entropy").run(model, {"input_ids": IDS, "labels": tags})
    logits = model.head(model.embedding(IDS))
    assert torch.allclose(result.loss, functional.cross_entropy(logits.flatten(0, 1), tags.flatten()))
    assert result.scores.shape == (2, 7, 4)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (IDS[:, :1], r"\(2, 1, 7\) for a target int64 of shape \(2, 1\).*T at least 2"),
        ((IDS, IDS[:, 1:]), r"\(2, 4, 7\) for a target int64 of shape \(2, 3\)"),
        ((IDS, torch.ones(2, 4)), r"a target float32 of shape \(2, 4\)"),
        ({"input_ids": IDS, "label": IDS, "labels": IDS}, r"which one is the target with task\.target=FIELD"),
        ({"attention_mask": torch.ones(2, 4)}, r"no field `input_ids` with the tokens; give task\.target=FIELD"),
        ((IDS, MASK, LABELS), r"task\.call=args task\.target=-1"),
    ],
    ids=lambda value: "",
)
def test_what_has_no_next_token_is_refused(batch, words):
    with pytest.raises(ConfigError, match=words):
        CAUSAL(Tokens(), batch)


@pytest.mark.parametrize("loss", ["auto", "model"])
def test_a_shift_needs_a_loss_of_the_task(loss):
    with pytest.raises(ConfigError, match=r"task\.shift=true .* give cross_entropy"):
        BatchTask(loss=loss, shift=True)


def test_tags_of_as_many_tokens_as_classes_are_read_as_those_of_the_batches_before():
    tagger, task = nn.Embedding(9, 4), BatchTask(loss="cross_entropy")
    batches = [(torch.randint(9, (2, length)), torch.randint(4, (2, length))) for length in (5, 4, 6)]
    for ids, tags in batches:
        result, scores = task.run(tagger, (ids, tags)), tagger(ids).transpose(1, 2)
        assert torch.allclose(result.loss, functional.cross_entropy(scores, tags))
        assert torch.equal(result.scores, scores)
    with pytest.raises(ConfigError, match=r"no earlier batch tells") as caught:
        BatchTask(loss="cross_entropy")(tagger, batches[1])
    assert "causal_lm" not in str(caught.value)

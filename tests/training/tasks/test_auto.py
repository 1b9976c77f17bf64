"""`task=auto` for pairs of model and batch: each loss is right, or the pair is refused with the key to set."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from runner.errors import ConfigError
from runner.training.tasks.task import BatchTask

TwoHeads = namedtuple("TwoHeads", "logits aux_logits")


@dataclass
class Output:
    """What a language model returns: an object with attributes."""

    logits: Tensor
    loss: Tensor | None = None
    cache: Any = None


class Net(nn.Module):
    """A linear layer with 4 outputs, whose result is given to a function before it is returned."""

    def __init__(self, then=lambda scores: scores, outputs=4):
        super().__init__()
        self.layer, self.then = nn.Linear(3, outputs), then

    def forward(self, x):
        return self.then(self.layer(x))


class Tokens(nn.Module):
    """A causal model of 7 tokens; given labels it returns a loss, as those of transformers do."""

    def __init__(self, tokens=7):
        super().__init__()
        self.embedding, self.head = nn.Embedding(tokens, 5), nn.Linear(5, tokens)

    def forward(self, input_ids, cache: dict | None = None, attention_mask: Tensor | None = None, labels=None, **extra):
        logits = self.head(self.embedding(input_ids))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(logits, loss)


class LogitsOfTokens(Tokens):
    """A causal model that takes the tokens alone and returns its logits as a tensor."""

    def forward(self, input_ids):
        return super().forward(input_ids).logits


class TakesAnything(nn.Module):
    """A wrapper that passes on whatever it is given."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class TakesTarget(Net):
    """A model that returns its loss if it is given the target y."""

    def forward(self, x, y=None):
        scores = self.layer(x)
        return scores if y is None else functional.cross_entropy(scores, y)


class Autoencoder(nn.Module):
    """A model whose loss is that of its own input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return functional.mse_loss(self.layer(x), x)


class Pixels(nn.Module):
    """A model with 4 scores for each pixel."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return OrderedDict(out=self.layer(x))


torch.manual_seed(0)
X, CLASSES, NUMBERS = torch.randn(5, 3), torch.tensor([0, 3, 1, 1, 2]), torch.randn(5)
IDS, PICTURES, MASKS = torch.randint(7, (2, 6)), torch.randn(2, 3, 5, 5), torch.randint(4, (2, 5, 5))


def of_classes(model):
    return functional.cross_entropy(model.layer(X), CLASSES)


def of_tokens(model):
    return functional.cross_entropy(model.head(model.embedding(IDS))[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


RIGHT = {
    "a pair": (Net(), (X, CLASSES), of_classes),
    "a list of two": (Net(), [X, CLASSES], of_classes),
    "integers that are not int64": (Net(), (X, CLASSES.int()), of_classes),
    "a mapping with the model's argument and a label": (Net(), {"x": X, "label": CLASSES}, of_classes),
    "a mapping that is no dict, with a field that nobody takes": (
        Net(),
        UserDict(x=X, labels=CLASSES, idx=torch.arange(5)),
        of_classes,
    ),
    "a pair of a mapping and a target": (Net(), ({"x": X, "name": ["a"] * 5}, CLASSES), of_classes),
    "a wrapper that takes anything": (
        TakesAnything(Net()),
        {"x": X, "label": CLASSES, "idx": 1},
        lambda wrapper: of_classes(wrapper.module),
    ),
    "a data parallel model": (
        nn.DataParallel(Net()),
        {"x": X, "label": CLASSES, "idx": 1},
        lambda wrapper: of_classes(wrapper.module),
    ),
    "one tensor among the outputs that fits": (Net(lambda scores: (scores, {"attention": None})), (X, CLASSES), of_classes),
    "logits and hidden states of another shape": (
        Net(lambda scores: Output(scores, cache=[scores])),
        (X, CLASSES),
        of_classes,
    ),
    "pixels": (Pixels(), (PICTURES, MASKS), lambda model: functional.cross_entropy(model.layer(PICTURES), MASKS)),
    "labels that the model takes": (Tokens(), {"input_ids": IDS, "labels": IDS}, of_tokens),
    "labels that the model takes, in a wrapper": (
        TakesAnything(Tokens()),
        {"input_ids": IDS, "labels": IDS},
        lambda wrapper: of_tokens(wrapper.module),
    ),
    "a target that the model takes": (TakesTarget(), {"x": X, "y": CLASSES}, of_classes),
    "a tensor without a target": (Autoencoder(), X, lambda model: functional.mse_loss(model.layer(X), X)),
    "a row of one": (Autoencoder(), [X], lambda model: functional.mse_loss(model.layer(X), X)),
}


@pytest.mark.parametrize("case", RIGHT)
def test_auto_takes_the_loss_that_the_pair_of_model_and_batch_leaves_no_doubt_about(case):
    model, batch, expected = RIGHT[case]
    assert torch.equal(BatchTask()(model, batch), expected(model))


REFUSED = {
    "numbers for (N, 1) outputs": (Net(outputs=1), (X, NUMBERS), r"task\.loss=mse_loss"),
    "numbers of shape (N, 1)": (
        Net(outputs=1),
        (X, NUMBERS[:, None]),
        r"returned a tensor of shape \(5, 1\) .*task\.loss=mse_",
    ),
    "class probabilities": (
        Net(),
        (X, torch.rand(5, 4)),
        r"float32 of shape \(5, 4\); give task\.loss=mse_loss for numbers, task\.loss=cross_entropy for class prob",
    ),
    "one score for two classes": (
        Net(outputs=1),
        (X, CLASSES % 2),
        r"task\.loss=binary_cross_entropy_with_logits for 0 and 1",
    ),
    "one score for each pixel": (nn.Conv2d(3, 1, 1), (PICTURES, MASKS), r"task\.loss=binary_cross_entropy_with_logits"),
    "a target that only the model can use": (
        Net(lambda scores: scores[:2]),
        (X, CLASSES),
        r"task=model_loss if the model takes the target",
    ),
    "a loss among the outputs without a name": (
        Net(lambda scores: (scores, scores.sum())),
        X,
        r"a tuple of 2 and no field `loss`: give task\.outputs=\{1: 1\}",
    ),
    "several labels for each sample": (Net(), (X, torch.ones(5, 4, dtype=torch.bool)), r"task\.loss=binary_cross_entropy"),
    "another number of samples": (Net(), (X, CLASSES[:3]), r"\(5, 4\) for a target int64 of shape \(3,\)"),
    "a target that is no tensor": (Net(), (X, ["cat"] * 5), r"a list of 5 as the target; give task\.loss=my\.loss"),
    "a loss of the model beside a target": (
        Autoencoder(),
        (X, CLASSES),
        r"separate target: give task=model_loss task\.call=first$",
    ),
    "a loss among the outputs beside a target": (
        Net(lambda scores: Output(scores, scores.sum())),
        (X, CLASSES),
        r"the scalar loss would be left out.*\{logits: 1\} to leave it out, or task=model_loss task\.call=first if",
    ),
    "summands of a loss beside a target": (
        Net(lambda scores: {"box": scores.sum(), "mask": scores.mean()}),
        (X, CLASSES),
        r"a dict with box and mask, a loss of its own",
    ),
    "a scalar beside the scores": (
        Net(lambda scores: {"logits": scores, "aux_loss": scores.mean()}),
        (X, CLASSES),
        r"a dict with logits and aux_loss, .*: the scalar aux_loss would be left out of the loss; give "
        r"task\.outputs=\{logits: 1, aux_loss: 0\.01\} to add it with a weight, task\.outputs=\{logits: 1\} to leave",
    ),
    "a loss before the scores": (
        Net(lambda scores: (scores.sum(), scores)),
        (X, CLASSES),
        r"task\.outputs=\{1: 1, 0: 0\.01\} .* or task=model_loss task\.call=first task\.outputs=\{0: 1\} if it is",
    ),
    "two outputs that fit": (
        Net(lambda scores: TwoHeads(scores, scores)),
        (X, CLASSES),
        r"TwoHeads with logits and aux_logits.*task\.outputs=\{logits: 1, aux_logits: 0\.3\}",
    ),
    "a tuple of two outputs": (Net(lambda scores: (scores, scores)), (X, CLASSES), r"task\.outputs=\{0: 1, 1: 0\.3\}"),
    "no tensor among the outputs": (Net(lambda scores: None), (X, CLASSES), r"a NoneType, in which there is no tensor"),
    "tokens as their own labels": (LogitsOfTokens(), (IDS, IDS), r"give task=causal_lm to predict the next token"),
    "labels of tokens that no model takes": (LogitsOfTokens(), {"input_ids": IDS, "labels": IDS}, r"task=causal_lm"),
    "as many tokens as classes": (LogitsOfTokens(), (IDS[:, [*range(6), 0]],) * 2, r"task=causal_lm"),
    "a row of three": (Tokens(), (IDS, torch.ones_like(IDS), IDS), r"task\.call=args task\.target=-1"),
    "an empty row": (Net(), (), r"empty tuple"),
    "fields that are no arguments": (
        Net(),
        {"image": X, "label": CLASSES},
        r"the fields image and label, and the model takes forward\(x\): give task\.fields=\{image: x\}",
    ),
    "two fields that may be the target": (Net(), {"x": X, "label": CLASSES, "target": CLASSES}, r"with task\.target=FIELD"),
    "no target and no loss": (Net(), X, r"returned a tensor of shape \(5, 4\), which is no loss.*give task\.target=FIELD"),
    "labels that the model takes and ignores": (
        Tokens(),
        {"input_ids": IDS, "labels": None},
        r"an Output with logits, loss and cache.*task\.target=labels",
    ),
    "a missing argument": (TakesTarget(), {"y": CLASSES}, r"forward\(x, y=None\).*missing a required argument: 'x'"),
    "a mapping in a pair that the model takes none of": (Net(), ({"a": X}, CLASSES), r"give task\.fields=\{0: x\}"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_auto_refuses_what_would_be_a_guess_and_says_which_key_to_set(case):
    model, batch, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words) as caught:
        BatchTask()(model, batch)
    assert len(str(caught.value)) <= 380


def on_meta(build, **options):
    """Return a torchvision model without values, in training mode."""
    with torch.device("meta"):
        return build(weights=None, **options)


def meta_batch(*shape, target=None):
    """Return a pair of pictures and classes without values."""
    return torch.empty(2, *shape, device="meta"), torch.zeros(target or (2,), dtype=torch.int64, device="meta")


@pytest.mark.parametrize(
    "build", [torchvision.models.resnet18, torchvision.models.vit_b_16], ids=lambda build: build.__name__
)
def test_auto_classifies_with_models_of_torchvision(build):
    result = BatchTask().run(on_meta(build), meta_batch(3, 224, 224))
    assert (result.loss.shape, result.parts, result.scores.shape, result.target.shape) == ((), {}, (2, 1000), (2,))


def test_auto_classifies_videos():
    assert BatchTask()(on_meta(torchvision.models.video.r3d_18), meta_batch(3, 4, 32, 32)).shape == ()


@pytest.mark.parametrize(
    ("build", "size", "outputs"),
    [
        (torchvision.models.googlenet, 224, {"logits": 1, "aux_logits2": 0.3, "aux_logits1": 0.3}),
        (torchvision.models.inception_v3, 299, {"logits": 1, "aux_logits": 0.4}),
    ],
)
def test_a_model_with_auxiliary_classifiers_is_refused_until_their_weights_are_given(build, size, outputs):
    model, batch = on_meta(build, init_weights=False, aux_logits=True), meta_batch(3, size, size)
    with pytest.raises(
        ConfigError, match=r"Outputs with logits(,| and) aux_logits.*task\.outputs=\{logits: 1, aux_logits2?: 0\.3"
    ):
        BatchTask()(model, batch)
    assert BatchTask(outputs=outputs).run(model, batch).parts.keys() == outputs.keys()
    assert BatchTask(outputs=outputs).run(model.eval(), batch).parts == {}


@pytest.mark.parametrize("aux", [True, False])
def test_segmentation_models_of_torchvision_have_a_loss_for_each_output(aux):
    model = on_meta(torchvision.models.segmentation.fcn_resnet50, weights_backbone=None, aux_loss=aux, num_classes=5)
    batch = meta_batch(3, 64, 64, target=(2, 64, 64))
    if aux:
        with pytest.raises(ConfigError, match=r"OrderedDict with out and aux.*task\.outputs=\{out: 1, aux: 0\.3\}"):
            BatchTask()(model, batch)
    result = BatchTask(outputs={"out": 1, "aux": 0.4}).run(model, batch)
    assert set(result.parts) == ({"out", "aux"} if aux else set())
    assert result.scores.shape == (2, 5, 64, 64)

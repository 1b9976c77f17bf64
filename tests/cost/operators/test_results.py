"""What operators return for outlines is what they return for torch's fake tensors, which are the slow oracle here."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from runner.cost.copies import ModelCopy
from runner.cost.flops import META, StepCount, run_and_count
from runner.cost.operators import results
from runner.cost.operators.counter import OutlineCounter
from runner.cost.operators.outline import NotOutlinedError, Outline
from runner.tensors import map_tensors
from runner.training.loop import Task
from runner.training.tasks.task import BatchTask


def on_outlines(model: nn.Module, task: Task, batch: object) -> StepCount:
    """The count on outlines alone; raises if they do not know all that the step does."""
    copied = ModelCopy.outlined(ModelCopy.outlined(model).model).model
    return run_and_count(copied, task, map_tensors(batch, Outline.like), META)


def check(model: nn.Module, batch: object, task: Task | None = None) -> None:
    """Assert that outlines and fake tensors give the same counts: all trains, the last layer or every second tensor does."""
    task = task or BatchTask()
    parameters = list(model.parameters())
    for trains in (lambda place: True, lambda place: place >= len(parameters) - 2, lambda place: place % 2):
        for place, parameter in enumerate(parameters):
            parameter.requires_grad_(bool(trains(place)))
        assert on_outlines(model, task, batch) == ModelCopy.without_values(model).count(task, batch)


def pictures(size: int = 64):
    return torch.randn(2, 3, size, size), torch.randint(10, (2,))


QUICK = ("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "convnext_tiny")
MORE = (
    *("alexnet", "vgg11_bn", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121"),
    *("mnasnet0_5", "regnet_y_400mf", "swin_t", "swin_v2_t"),
)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
def test_outlines_give_the_counts_of_fake_tensors_for_torchvision(name):
    check(getattr(torchvision.models, name)(num_classes=10), pictures())


def test_outlines_give_the_counts_of_fake_tensors_for_a_vision_transformer():
    check(torchvision.models.vit_b_32(num_classes=10, image_size=64), pictures())


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "mixer_s32_224", "tf_efficientnet_lite0", "convnextv2_atto", "resnet10t"]
)
def test_outlines_give_the_counts_of_fake_tensors_for_timm(name):
    model = pytest.importorskip("timm").create_model(name, num_classes=10)
    check(model, pictures(224))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "vocab_size": 99}
TEXTS = {"input_ids": torch.randint(99, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
CLASSES, TOKENS = {"labels": torch.tensor([0, 1])}, {"labels": torch.randint(99, (2, 7))}
TRANSFORMERS = {
    "BertForSequenceClassification": (SMALL, TEXTS | CLASSES),
    "AlbertForSequenceClassification": (SMALL | {"embedding_size": 16}, TEXTS | CLASSES),
    "LlamaForCausalLM": (SMALL | {"num_key_value_heads": 2}, TEXTS | TOKENS),
    "Qwen2ForCausalLM": (SMALL | {"num_key_value_heads": 2}, TEXTS | TOKENS),
    "GPT2LMHeadModel": ({"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4}, TEXTS | TOKENS),
    "MambaForCausalLM": ({"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, TEXTS | TOKENS),
    "ViTForImageClassification": (
        {**SMALL, "image_size": 32, "patch_size": 8},
        {"pixel_values": torch.randn(2, 3, 32, 32), **CLASSES},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_outlines_give_the_counts_of_fake_tensors_for_transformers(name):
    cls, (options, batch) = getattr(pytest.importorskip("transformers"), name), TRANSFORMERS[name]
    batch = {key: value for key, value in batch.items() if "Mamba" not in name or key != "attention_mask"}
    check(cls(cls.config_class(**options)), batch, lambda model, batch: model(**batch).loss)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("view", torch.arange(6).view(2, 3).flatten())

    def forward(self, x):
        return self.output(self.embedding(x + self.view[0])).mean(1)


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].sign()


class Calls(nn.Module):
    """A layer, and a function of its output."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.layer, self.function = layer or nn.Linear(8, 8), function

    def forward(self, x):
        return self.function(self.layer(x))


def in_place(x):
    x = x * 1
    x[:, 1:3].mul_(2)
    x[0] = 1
    return x.t_().t_().unsqueeze_(0).squeeze(0)


ONES = torch.ones(8)
MODELS = {
    "tied weights": (Tied(), torch.randint(10, (4, 3))),
    "checkpoints": (Checkpointed(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(4, 8)),
    "an own autograd function": (Calls(Doubled.apply), torch.randn(4, 8)),
    "writes in place": (Calls(in_place), torch.randn(4, 8)),
    "a recurrent layer": (Calls(lambda output: output[0][-1], nn.LSTM(8, 8, 2)), torch.randn(5, 4, 8)),
    "dropout": (Calls(nn.Dropout()), torch.randn(4, 8)),
    "new tensors": (Calls(lambda x: x + torch.arange(8) * torch.rand(8) + torch.tensor(2.0)), torch.randn(4, 8)),
    "a constant of the code": (Calls(lambda x: x * ONES), torch.randn(4, 8)),
    "splits and joins": (Calls(lambda x: torch.cat([part.sin() for part in x.chunk(3, 1)], 1)), torch.randn(4, 8)),
    "channels last": (nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), torch.randn(2, 3, 9, 9)),
    "a convolution of one column": (nn.Conv2d(3, 4, (3, 1)), torch.randn(2, 3, 9, 1)),
    "one sample of batch norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(1, 3, 9, 9)),
    "batch norm of one position": (nn.Sequential(nn.Conv2d(3, 4, 9), nn.BatchNorm2d(4)), torch.randn(3, 3, 9, 9)),
    "batch norm in eval mode": (Calls(lambda x: x, nn.BatchNorm1d(8, affine=False)), torch.randn(4, 8)),
    "double precision": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).double(), torch.randn(2, 3, 9).double()),
    "bfloat16": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).bfloat16(), torch.randn(2, 3, 9).bfloat16()),
    "a parametrization": (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), torch.randn(4, 8)),
    "nothing to train": (nn.Softmax(-1), torch.randn(4, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_outlines_give_the_counts_of_fake_tensors_for_what_models_do(name):
    model, x = MODELS[name]
    check(model, x, lambda model, x: model(x).float().sum())


def test_outlines_give_the_counts_of_fake_tensors_under_autocast():
    def task(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.cross_entropy(model(batch[0]).float(), batch[1])

    check(torchvision.models.resnet18(num_classes=10), pictures(), task)


def test_what_is_remembered_of_an_operator_depends_on_the_default_dtype():
    def size():
        with OutlineCounter() as counter:
            kept = torch.ones(3)  # noqa: F841
            return counter.bytes

    before = size()
    torch.set_default_dtype(torch.float64)
    try:
        assert size() == 2 * before == 24
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_remembered_is_forgotten_when_it_is_much(monkeypatch):
    monkeypatch.setattr(results, "MOST_REMEMBERED", 3)
    check(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 8), lambda model, x: model(x).sum())
    assert len(results._remembered) <= 3


class Reads(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y * 2 if y.sum() > 0 else y


OUTSIDE = torch.zeros(8)


def writes_outside(x):
    OUTSIDE.add_(1)
    return x + OUTSIDE


def writes_data(x):
    x = x.clone()
    x.data = torch.zeros(4, 8)
    return x


NOT_KNOWN = {
    "batch norm of one value": Calls(
        lambda x: x, nn.Sequential(nn.Unflatten(0, (1, 4)), nn.Flatten(0, 2), nn.Unflatten(0, (1, 32)), nn.BatchNorm1d(32))
    ),
    "reads values": Reads(8, 8),
    "reads new values": Calls(lambda x: x * torch.ones(3).sum().item()),
    "makes a list": Calls(lambda x: x * sum(torch.ones(3).tolist())),
    "changes a tensor that it keeps outside": Calls(writes_outside),
    "puts another memory under a tensor": Calls(writes_data),
}


def outcome(count):
    """The result of a function, or the type of what it raises."""
    try:
        return count()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_what_outlines_do_not_know_is_counted_as_without_them(name):
    model, x = NOT_KNOWN[name], torch.randn(4, 8)

    def task(model, x):
        return model(x).sum()

    assert isinstance(outcome(lambda: on_outlines(model, task, x)), type)
    assert torch.equal(OUTSIDE, torch.zeros(8))
    expected = outcome(lambda: ModelCopy.without_values(model).count(task, x))
    assert outcome(lambda: ModelCopy.outlined(model).count(task, x)) == expected
    OUTSIDE.zero_()


def test_a_copy_of_outlines_is_not_changed_by_counting():
    class Counts(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = super().forward(x)
            return self.last

    model = ModelCopy.outlined(Counts(8, 8))
    assert model.count(lambda model, x: model(x).sum(), torch.randn(2, 8)).gradient_bytes == 4 * 72
    assert model.model.calls == 0
    assert not hasattr(model.model, "last")
    assert model.model.weight.grad is None


def with_weight(weight: torch.Tensor) -> nn.Linear:
    """Return a linear layer with this weight."""
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(weight)
    return layer


WITHOUT_OUTLINES = {
    "sparse": lambda: with_weight(torch.eye(8).to_sparse()),
    "a part of a tensor": lambda: with_weight(torch.zeros(16, 8)[:8]),
    "lazy": lambda: nn.LazyLinear(8),
    "compiled": lambda: torch.compile(nn.Linear(8, 8)),
}


@pytest.mark.parametrize("name", WITHOUT_OUTLINES)
def test_a_model_whose_tensors_are_more_than_their_form_has_no_outlines(name):
    with pytest.raises(NotOutlinedError):
        ModelCopy.outlined(WITHOUT_OUTLINES[name]())

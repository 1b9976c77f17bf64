"""The head of a model is found by one forward pass, which leaves no trace."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torchvision import models

from runner import select
from runner.errors import ConfigError
from runner.freezing.trial.run import try_model
from runner.training.models import MLP, TokenMLP

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def heads(model, batch=X, task=None, **options):
    """Return the names of the head that a trial finds; fails if it gives a reason instead."""
    trial = try_model(model, batch, task, **options)
    assert not trial.problem
    return [*trial.heads]


def problem(model, batch=X, task=None, **options):
    """Return why a trial finds no head; fails if it finds one."""
    trial = try_model(model, batch, task, **options)
    assert not trial.heads
    return trial.problem


def body():
    """Return two layers that come before a head."""
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU())


class Functional(nn.Module):
    """Its head is a bare parameter, used through `F.linear`, its rows normalized."""

    def __init__(self):
        super().__init__()
        self.body, self.weight = body(), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        return F.linear(F.normalize(self.body(x)), F.normalize(self.weight)) * 3


class Cosine(nn.Module):
    """A layer with normalized rows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class LowRank(nn.Module):
    """A linear layer with an adapter: the product of two thin matrices is added to what it gives."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(inputs, 2)), nn.Parameter(torch.randn(2, outputs))

    def forward(self, x):
        return self.linear(x) + x @ self.down @ self.up


class TwoTowers(nn.Module):
    """Two projections whose similarity is scaled by a learned number, as in CLIP."""

    def __init__(self):
        super().__init__()
        self.scale, self.a, self.b = nn.Parameter(torch.tensor(1.0)), body(), body()
        self.to_a, self.to_b = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x):
        one, other = (F.normalize(each, dim=-1) for each in (self.to_a(self.a(x)), self.to_b(self.b(x))))
        return one @ other.T * self.scale.exp()


class Router(nn.Module):
    """A layer whose gate has a loss of its own, beside that of the head."""

    def __init__(self):
        super().__init__()
        self.body, self.gate = body(), nn.Linear(8, 2)
        self.experts, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Linear(8, 3)

    def forward(self, x):
        x = self.body(x)
        gates = self.gate(x).softmax(-1)
        mixed = sum(gates[:, [number]] * expert(x) for number, expert in enumerate(self.experts))
        return self.head(mixed), gates.pow(2).mean()


class Recurrent(nn.Module):
    """An LSTM and a head; what the head gives is fed back."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        state = self.cell(x)
        for _ in range(2):
            state = self.cell(self.head(state[0]), state)
        return self.head(state[0])


class Tied(nn.Module):
    """Its head shares its weight with the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(7, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.out = nn.Linear(8, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.norm(self.mix(self.embed(tokens))))


class Checkpointed(nn.Module):
    """Its body forgets its activations and computes them again in the backward pass."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.body, self.head, self.use_reentrant = body(), nn.Linear(8, 3), use_reentrant

    def forward(self, x):
        return self.head(checkpoint(self.body, x.clone().requires_grad_(), use_reentrant=self.use_reentrant))


class Pruned(nn.Module):
    """A head with a mask on its weight."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), nn.Linear(8, 3)
        prune.l1_unstructured(self.head, "weight", amount=2)

    def forward(self, x):
        return self.head(self.body(x))


def with_head(head):
    """Return a model with this head after a body."""
    return nn.Sequential(OrderedDict(body=body(), head=head))


TOKENS = torch.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    ("make", "batch", "expected"),
    [
        (lambda: MLP([8]), X, ["head"]),
        (lambda: TokenMLP(), X, ["head"]),
        (lambda: with_head(nn.Linear(8, 3)), X, ["head"]),
        (lambda: with_head(nn.Linear(8, 1)), X, ["head"]),  # a regression
        (lambda: with_head(nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3), nn.Softplus())), X, ["head.0"]),
        (lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)), X, ["2"]),
        (lambda: nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 5)).to(torch.bfloat16), X.bfloat16(), ["1"]),
        (lambda: nn.Sequential(nn.EmbeddingBag(7, 8), nn.Linear(8, 3)), TOKENS, ["1"]),
        (lambda: nn.Sequential(nn.Embedding(7, 8), nn.Flatten(), nn.Linear(24, 3)), TOKENS, ["2"]),
        (lambda: with_head(parametrizations.weight_norm(nn.Linear(8, 3))), X, ["head"]),
        (lambda: with_head(parametrizations.spectral_norm(nn.Linear(8, 3))), X, ["head"]),
        (lambda: with_head(parametrizations.orthogonal(nn.Linear(8, 3))), X, ["head"]),
        (lambda: with_head(torch.nn.utils.spectral_norm(nn.Linear(8, 3))), X, ["head"]),
        (lambda: with_head(Cosine()), X, ["head"]),
        (lambda: with_head(LowRank(8, 5)), X, ["head"]),
        (lambda: nn.Sequential(LowRank(8, 8), LowRank(8, 8), LowRank(8, 5)), X, ["2"]),
        (Pruned, X, ["head"]),
        (Functional, X, ["weight"]),
        (TwoTowers, X, ["to_a", "to_b"]),
        (Router, X, ["head"]),
        (Recurrent, X, ["head"]),
        (Tied, TOKENS, ["out"]),
        (lambda: Checkpointed(True), X, ["head"]),
        (lambda: Checkpointed(False), X, ["head"]),
        (lambda: nn.DataParallel(with_head(nn.Linear(8, 3))), X, ["module.head"]),
    ],
)
def test_the_head_is_where_the_paths_back_from_the_loss_end(make, batch, expected):
    torch.manual_seed(0)
    assert heads(make(), batch) == expected


def pictures(size, count=2):
    """Return a batch of pictures."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


UNTRAINED_BACKBONE = {"weights_backbone": None}
LRASPP = ["classifier.low_classifier", "classifier.high_classifier"]


@pytest.mark.parametrize(
    ("name", "size", "options", "expected"),
    [
        ("resnet18", 64, {}, ["fc"]),
        ("squeezenet1_1", 64, {}, ["classifier.1"]),
        ("lraspp_mobilenet_v3_large", 64, UNTRAINED_BACKBONE, LRASPP),
        *(
            pytest.param(*more, marks=pytest.mark.long)
            for more in (
                ("mobilenet_v3_small", 64, {}, ["classifier.3"]),
                ("convnext_tiny", 64, {}, ["classifier.2"]),
                ("googlenet", 96, {"init_weights": False}, ["aux1.fc2", "aux2.fc2", "fc"]),
                ("fcn_resnet50", 64, {"aux_loss": True, **UNTRAINED_BACKBONE}, ["classifier.4", "aux_classifier.4"]),
            )
        ),
    ],
)
def test_the_heads_of_torchvision_models_are_their_classifiers_and_auxiliary_ones(name, size, options, expected):
    model = models.get_model(name, weights=None, num_classes=5, **options)
    assert sorted(heads(model, pictures(size))) == sorted(expected)


def test_without_the_auxiliary_output_in_the_loss_the_main_classifier_alone_is_the_head():
    model = models.get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    assert heads(model, pictures(32), lambda model, x: model(x)["out"].mean()) == ["classifier.4"]


def test_the_heads_of_a_detector_are_the_last_layers_of_its_classes_and_boxes():
    model = models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3)
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    names = heads(model, ([*pictures(64)], [target, target]))
    parts = ("classification_head", "regression_head")
    assert names == [f"head.{part}.module_list.{level}.1" for part in parts for level in range(6)]


def test_features_of_a_backbone_have_no_head_and_the_block_that_makes_them_is_named():
    model = models.resnet18()
    model.fc = nn.Identity()
    assert problem(model, pictures(32)) == (
        "the head is not clear: layer4.1.conv2 is in layer4.1, a BasicBlock like layer1.0, layer1.1 and 5 more; "
        "the loss is made by layer4.1.conv2"
    )
    with pytest.raises(ConfigError, match=r"^head: the head is not clear: layer4.1.conv2 .*; name the head with head=NAME$"):
        select(model, ["@head"], batch=pictures(32))
    assert select(model, ["layer4"], batch=pictures(32)).parameters


def test_a_model_without_weights_has_no_head():
    assert problem(nn.Sequential(nn.BatchNorm1d(8))) == "the loss depends on no parameter of two or more dimensions"
    assert problem(body(), X, lambda model, x: model(x).detach().sum()) == (
        "the loss depends on no parameter of two or more dimensions"
    )


class Unfed(nn.Module):
    """A model that does not call its head."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), nn.Linear(8, 3)

    def forward(self, x):
        return self.body(x)


def test_a_head_that_nothing_feeds_is_named_where_the_number_of_classes_tells():
    assert problem(Unfed(), classes=3) == "head has 3 outputs, but nothing feeds it; the loss is made by body.0"
    assert heads(Unfed(), classes=8) == ["body.0"]
    assert heads(Unfed()) == ["body.0"]


class Restless(nn.Module):
    """A model that draws, counts, writes its buffers, and has some of its parameters frozen and modules in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.body = nn.Linear(8, 8).requires_grad_(False)
        self.table = nn.Embedding(3, 8, max_norm=0.1)
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False)
        self.norm.eval()

    def forward(self, x):
        self.calls += 1
        x = self.drop(self.norm(self.body(x + torch.rand(8))))
        return self.head(x + self.table(torch.tensor(1)))


def test_a_trial_leaves_bits_flags_modes_gradients_and_random_states_as_they_were():
    torch.manual_seed(0)
    model = Restless()
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    objects = [*map(id, model.parameters())]
    with torch.no_grad():
        assert heads(model) == ["head"]
    assert all(torch.equal(before[name], each) for name, each in (*model.named_parameters(), *model.named_buffers()))
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert objects == [*map(id, model.parameters())]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_trial_that_raises_leaves_no_trace_either():
    model = Restless()
    before = model.table.weight.detach().clone()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        try_model(model, torch.zeros(4, 9)[:, :8], lambda model, x: model.head(model(x)))
    assert torch.equal(model.table.weight, before)
    assert not model.norm.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_batch_is_given_as_the_models_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x, mask):
            return self.head(x * mask)

    assert heads(Two(), (X, X)) == heads(Two(), {"x": X, "mask": X}) == ["head"]
    assert heads(with_head(nn.Linear(8, 3)), (X, torch.zeros(4))) == ["head"]


def test_select_finds_the_head_by_a_trial_with_a_batch_and_guesses_without_one():
    model = nn.Sequential(OrderedDict(head=nn.Linear(8, 8), act=nn.ReLU(), out=nn.Linear(8, 3), spare=nn.Linear(3, 3)))
    model.spare.forward = lambda x: x
    found, guessed = select(model, ["@head"], batch=X), select(model, ["@head"])
    assert [*found.parameters] == ["out.weight", "out.bias"]
    assert found.notes == ("@head is out: the loss of the batch is made there",)
    assert [*guessed.parameters] == ["spare.weight", "spare.bias"]
    assert guessed.notes == (
        "@head is taken to be spare, the last layer with an output size: a guess; give batch=... to find it",
    )
    by_task = select(model, ["@head"], batch=X, task=lambda model, x: model.head(x).sum())
    assert [*by_task.parameters] == ["head.weight", "head.bias"]


def test_select_makes_no_trial_where_no_pattern_needs_one():
    def refuse(model, batch):
        raise AssertionError("the model was run")

    model = with_head(nn.Linear(8, 3))
    assert select(model, ["head"], batch=X, task=refuse).parameters
    assert select(model, ["@head"], head="head", batch=X, task=refuse).parameters
    with pytest.raises(AssertionError, match="the model was run"):
        select(model, ["@head"], batch=X, task=refuse)


def test_a_trial_says_which_modules_take_the_picture_and_which_take_something_else():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.see, self.read = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), nn.Embedding(7, 8)
            self.head = nn.Linear(44, 3)

        def forward(self, tokens, picture):
            return self.head(torch.cat([self.see(picture), self.read(tokens).mean(1)], 1))

    trial = try_model(Pair(), {"tokens": TOKENS, "picture": pictures(5)})
    assert trial.heads == ("head",)
    assert trial.takes_picture == ("", "see", "see.0")
    assert trial.takes_other == ("read",)


class Scaled(nn.Module):
    """A head whose output is scaled, or moved, by a learned tensor that has the shape of a broadcast vector or a matrix."""

    def __init__(self, combine, *shape):
        super().__init__()
        self.body, self.fc, self.extra = body(), nn.Linear(8, 4), nn.Parameter(torch.rand(shape))
        self.combine = combine

    def forward(self, x):
        return self.combine(self.fc(self.body(x)), self.extra)


@pytest.mark.parametrize(
    ("combine", "shape", "expected"),
    [
        (lambda x, extra: x * extra, (1, 4), ["fc"]),
        (lambda x, extra: x / extra.exp(), (1, 1), ["fc"]),
        (lambda x, extra: x + extra, (1, 4), ["fc"]),
        (lambda x, extra: x[:, :, None, None] * extra, (1, 4, 1, 1), ["fc"]),
        (lambda x, extra: x + extra, (4, 4), ["extra", "fc"]),  # a matrix that is added to the output is trained with it
        (lambda x, extra: x @ extra.T, (1, 4), ["extra"]),  # in a product of matrices it is a layer
        (lambda x, extra: torch.logsumexp(x[:, :, None] + extra, 1), (4, 4), ["extra", "fc"]),  # as in a CRF
    ],
)
def test_a_learned_scale_or_bias_after_the_head_does_not_hide_it(combine, shape, expected):
    assert sorted(heads(Scaled(combine, *shape))) == expected


def test_what_writes_to_its_batch_changes_a_copy():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(x.sub_(1))

    batch = X.clone()
    assert heads(Writes(), batch) == ["head"]
    assert torch.equal(batch, X)


def test_a_models_own_train_is_not_called_for_it_may_do_more_than_set_a_mode():
    class Merged(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("merges or unmerges an adapter")

    model = nn.Sequential(nn.Linear(8, 8), Merged(8, 3))
    assert heads(model) == ["1"]


def test_a_task_that_runs_backward_itself_leaves_no_gradients():
    def task(model, batch):
        model(batch).sum().backward()
        return model(batch).sum()

    model = with_head(nn.Linear(8, 3))
    model.head.bias.grad = torch.ones(3)
    kept = model.head.bias.grad
    assert heads(model, X, task) == ["head"]
    assert model.head.bias.grad is kept
    assert all(each.grad is None for name, each in model.named_parameters() if name != "head.bias")


def test_a_head_in_a_reentrant_checkpoint_is_not_known():
    model = with_head(nn.Linear(8, 3))
    found = problem(model, X, lambda model, x: checkpoint(model, x.clone().requires_grad_(), use_reentrant=True).sum())
    assert found.startswith("a reentrant checkpoint hides which layer makes the loss")


class Teacher(nn.Module):
    """A student and a teacher of the same class; the loss reaches the student alone."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Tower(), Tower()

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x)
        return (self.student(x) - target).square().mean()


class Tower(nn.Module):
    """A body and a projection."""

    def __init__(self):
        super().__init__()
        self.body, self.out = body(), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.body(x))


class Pooled(nn.Module):
    """A model that ends in a pooling head with an MLP, of a class that its blocks have too, as in SigLIP."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Holder() for _ in range(2))
        self.pool = Holder()
        self.pool.__class__ = type("Pool", (Holder,), {})

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.pool(x)


class Holder(nn.Module):
    """A module with a tower in it."""

    def __init__(self):
        super().__init__()
        self.mlp, self.up = Tower(), nn.Linear(3, 8)
        self.up.requires_grad_(False)

    def forward(self, x):
        return F.pad(self.mlp(x), (0, 5))


def test_a_block_is_compared_with_what_stands_beside_it_and_takes_part():
    assert heads(Teacher()) == ["student.out"]
    assert heads(Pooled()) == ["pool.mlp.out"]
    alike = nn.Sequential(Tower(), nn.Linear(3, 8), Tower())
    assert problem(alike).startswith("the head is not clear: 2.out is in 2, a Tower like 0;")


class Bottleneck(nn.Module):
    """Three layers, two of which have the shapes of a low-rank pair."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.out = nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.up(self.down(x).relu()).relu())


def test_a_bottleneck_is_no_adapter_and_a_list_of_weights_no_layer():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.ws = nn.ParameterList(torch.randn(8, 8) for _ in range(3))

        def forward(self, x):
            for weight in self.ws:
                x = (x @ weight).relu()
            return x

    assert heads(with_head(Bottleneck())) == ["head.out"]
    assert heads(Listed()) == ["ws.2"]
    assert heads(nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 3, num_layers=2))) == ["1"]


def test_a_layer_with_a_scale_of_its_own_is_one_layer():
    class ScaledLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.ones(1, 3))

        def forward(self, x):
            return x @ self.weight * self.scale

    assert heads(with_head(ScaledLinear())) == ["head"]


def test_vision_is_found_by_a_trial():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.see, self.read, self.head = nn.Linear(5, 4), nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, image, text):
            return self.head(self.see(image) + self.read(text).mean(1))

    found = select(Pair(), ["@vision"], batch={"image": torch.randn(2, 5), "text": TOKENS})
    assert [*found.parameters] == ["see.weight", "see.bias"]

"""`cached_prefix`: same bits as `requires_grad`, the prefix runs once per sample, or the run is skipped with a reason."""

from __future__ import annotations

import copy
import os
import resource
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from runner.contract import ignore_note
from runner.errors import SkippedError
from runner.freezing.selection import select
from runner.methods.base import Example, PhaseContext
from runner.methods.cached_prefix import CachedPrefix
from runner.methods.prefix.samples import batch_format
from runner.proof.verdict import run_verdict
from runner.tensors import same_bits
from runner.training.models import MLP
from tests.in_memory import run_experiment

HERE = "tests.methods.test_cached_prefix."
FROZEN = ("freeze=backbone", "freeze.buffers=frozen")
CALLS: list[int] = []


def notes_of_method(outcome) -> list[str]:
    """Return a run's notes without those of its selection."""
    return [note for note in outcome.notes if note not in outcome.selection.notes]


def model(name, *more):
    """Return the overrides that use a model of this file."""
    return ("model=custom", f"model.build._target_={HERE}{name}", "model.input=[3,8,8]", "model.classes=10", *more)


def task(name):
    """Return the overrides that use a task function of this file."""
    return ("task=custom", f"task._target_={HERE}{name}", "task._partial_=true")


def by_name(model, batch):
    """Return the loss of a batch that is a mapping with `x` and `y`."""
    return functional.cross_entropy(model(batch["x"]), batch["y"])


def sum_of_output(model, batch):
    """Return the sum of the model's output for a batch that is a tensor; a task."""
    return model(batch).sum()


def run_both(*overrides, epochs=3, options=()):
    """Return the outcomes of a run with `requires_grad` and of one with `cached_prefix`."""
    given = (*FROZEN, *overrides, f"data.epochs={epochs}")
    return run_experiment("method=requires_grad", *given), run_experiment("method=cached_prefix", *options, *given)


def assert_same_bits(plain, cached):
    assert plain.losses == cached.losses
    plain_state, cached_state = plain.model.state_dict(), cached.model.state_dict()
    assert list(plain_state) == list(cached_state)
    assert [name for name in plain_state if not same_bits(plain_state[name], cached_state[name])] == []
    assert plain.record["trained_digest"] == cached.record["trained_digest"]
    rows = [
        [(row["name"], row["verdict"], row["change_l2"], row["group"]) for row in outcome.rows]
        for outcome in (plain, cached)
    ]
    assert rows[0] == rows[1]


class Stages(nn.Sequential):
    """Several layers of one class before the head."""

    def __init__(self):
        layers = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(192, 10))


class Conv(nn.Module):
    """A convolution, a BatchNorm, and a residual connection outside any module."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.flat = nn.Flatten()
        self.act = nn.ReLU()
        self.head = nn.Linear(6 * 16, 10)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        x = functional.relu(x + self.inner(x)) * 0.5
        return self.head(self.act(self.flat(functional.max_pool2d(x, 2))))


class Counted(Conv):
    """Its prefix counts in CALLS how often it runs."""

    def __init__(self):
        super().__init__()
        self.first = CountedConv(3, 6, 3, padding=1)


class CountedConv(nn.Conv2d):
    def forward(self, x):
        CALLS.append(1)
        return super().forward(x)


class Shapes(Conv):
    """Its forward pass depends on shapes."""

    def forward(self, x):
        n, c, h, w = x.shape
        x = self.first(x.reshape(n, c, h, w))
        x = self.norm(x if x.size(1) == 6 else x[:, :6])
        x = self.inner(x).view(n, 6, -1, w)
        return self.head(self.flat(x.reshape(n, 6, h // 2, 2, w // 2, 2).amax((3, 5))))


class Token(nn.Module):
    """Concatenates a parameter of its own with the input, outside any module, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(64, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.embed(x.flatten(2))
        return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class InPlace(Conv):
    """Writes in place, and uses the memory format channels_last after its first module."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = self.act(self.norm(self.first(x.contiguous(memory_format=torch.channels_last))))
        x += self.inner(x)
        return self.head(self.act(x))


class RandomHead(Conv):
    """Its trainable head uses random numbers and batch statistics."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(96), nn.Linear(96, 10))


class DropoutInHead(Conv):
    """Its head begins with a Dropout that has no parameters, so that nothing trainable runs before it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(96, 10))


class Deep(nn.Module):
    """Its prefix ends inside a Sequential in a ModuleList, and one activation module is used several times."""

    def __init__(self):
        super().__init__()
        act = nn.ReLU()
        self.parts = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, 4, 3), act), nn.Sequential(nn.Flatten(), nn.Linear(144, 8), act, nn.Linear(8, 8))]
        )
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return self.last(x)


SMALL = {
    "mlp": ("model=mlp",),
    "token_mlp": ("model=token_mlp",),
    "resnet18": ("model=resnet18", "model.input=[3,32,32]", "model.classes=10"),
    **{name: model(name) for name in ("Conv", "Shapes", "Token", "InPlace", "RandomHead", "Deep")},
}
HEADS = ("model.head=head",)


@pytest.mark.parametrize(
    ("name", "memory_mb"),
    [
        pytest.param(name, size, marks=[pytest.mark.long] if name == "resnet18" and size != 0.001 else [])
        for name, size in product(SMALL, [0, 0.001, 1024])
    ],
)
def test_the_weights_have_the_same_bits_as_with_requires_grad(name, memory_mb):
    plain, cached = run_both(*SMALL[name], "batches=4", options=(f"method.memory_mb={memory_mb}",))
    assert_same_bits(plain, cached)
    assert notes_of_method(cached) == []
    assert run_verdict(cached.rows) == "held"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "asgd", "lbfgs", "rmsprop", "rprop", "sgd"])
@pytest.mark.parametrize("epochs", [2, pytest.param(5, marks=pytest.mark.long)])
def test_same_bits_under_every_optimizer(optimizer, epochs):
    more = ("groups=one", "optimizer.max_iter=3") if optimizer == "lbfgs" else ()
    assert_same_bits(*run_both(*model("RandomHead"), f"optimizer={optimizer}", *more, epochs=epochs))


@pytest.mark.parametrize("more", [("clip=0.1",), ("autocast=true",), ("scheduler=one_cycle",), ("zero_grad_to_none=false",)])
def test_same_bits_with_clipping_autocast_scheduler_and_zeroed_gradients(more):
    plain, cached = run_both(*model("Conv"), *more)
    assert_same_bits(plain, cached)
    assert notes_of_method(cached) == []


@pytest.mark.parametrize("data", ["data=digits", "data=synthetic"])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_same_bits_at_every_batch_size(data, size):
    assert_same_bits(*run_both(*model("Conv"), data, f"data.batch_size={size}"))


@pytest.mark.long
def test_with_two_threads_the_bits_are_the_same_or_a_note_gives_the_difference():
    plain, cached = run_both(*SMALL["resnet18"], "threads=2", "data.batch_size=8")
    if not notes_of_method(cached):
        assert_same_bits(plain, cached)
    assert cached.losses == pytest.approx(plain.losses, rel=1e-4)


def test_the_prefix_may_end_inside_a_container():
    freeze = ("freeze.patterns=[parts]", "freeze.keep=[parts.1.3]")
    assert_same_bits(*run_both(*model("Deep", *freeze)))


def test_if_everything_is_frozen_the_models_output_is_cached():
    CALLS.clear()
    plain, cached = run_both(*model("Counted"), "freeze.patterns=['**']", "freeze.keep=[]", "batches=3")
    assert plain.losses == cached.losses
    assert run_verdict(cached.rows) == "held"


# How often the prefix runs


def calls_per_batch(*overrides, epochs=3, options=()):
    """Return how often the prefix runs per batch of an epoch, without the calls of the check, which do not depend on it."""
    counts = []
    for batches in (3, 7):
        CALLS.clear()
        given = (*model("Counted"), *FROZEN, f"data.epochs={epochs}", f"batches={batches}", "cost=off", *options, *overrides)
        run_experiment("method=cached_prefix", *given)
        counts.append(len(CALLS))
    return (counts[1] - counts[0]) / 4


@pytest.mark.parametrize("epochs", [2, 5])
@pytest.mark.parametrize("memory_mb", [0, 1024])
def test_the_prefix_runs_once_per_batch_for_any_number_of_epochs(epochs, memory_mb):
    assert calls_per_batch(epochs=epochs, options=(f"method.memory_mb={memory_mb}",)) == 1
    assert calls_per_batch("optimizer=adam", epochs=epochs) == 1


class RecordsOutputs(CachedPrefix):
    """Records the outputs of the first module of the model that is trained, not those of its copies."""

    outputs: ClassVar[list[torch.Tensor]] = []

    def prepare(self, model, selection, undo):
        first = model.first
        undo.callback(
            first.register_forward_hook(
                lambda hooked, _, output: self.outputs.append(output) if hooked is first else None
            ).remove
        )
        return super().prepare(model, selection, undo)


def test_in_the_training_the_prefix_runs_only_in_the_first_epoch():
    RecordsOutputs.outputs.clear()
    given = ("method.epochs=4", *model("Conv"), *FROZEN, "data.epochs=4", "batches=3")
    run_experiment("method=cached_prefix", f"method._target_={HERE}RecordsOutputs", *given)
    assert [output.is_meta for output in RecordsOutputs.outputs] == [False] * 3 + [True] * 9


def test_with_one_epoch_nothing_is_cached_and_it_is_the_same_as_requires_grad():
    plain, cached = run_both(*model("Conv"), epochs=1)
    assert_same_bits(plain, cached)
    assert "data.epochs is 1" in notes_of_method(cached)[0]
    assert_same_bits(run_experiment("freeze=head"), run_experiment("method=cached_prefix", "freeze=head"))


# Reasons to skip the run


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Noisy(Conv):
    def __init__(self):
        super().__init__()
        self.act = Noise()


class NoisyInBetween(Conv):
    def forward(self, x):
        return super().forward(functional.dropout(x, 0.5, self.training))


class Dropped(Conv):
    def __init__(self):
        super().__init__()
        self.act = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.flat(self.act(functional.max_pool2d(self.inner(self.first(x)), 2))))


class CountsCalls(Conv):
    """Its output changes with each call, without random numbers."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return self.head(self.flat(functional.max_pool2d(self.inner(self.first(x * self.calls)), 2)))


class AcrossSamples(Conv):
    """Uses batch statistics also in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)


class AroundTheEnd(Conv):
    """Its output also depends on its input directly, not only through the prefix."""

    def forward(self, x):
        return super().forward(x) + x.mean((1, 2, 3))[:, None]


class Mask(Token):
    """Its output depends on a comparison of values in the prefix."""

    def forward(self, x):
        features = self.embed(x.flatten(2)) + self.token
        large = bool((features[:, 0, 0] > 1e20).any())
        out = self.head(self.encoder(features)[:, 0])
        return -out if large else out


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (model("NoisyInBetween", "freeze.patterns=[first,norm,inner]", "freeze.keep=[]"), "gives different outputs"),
        (model("CountsCalls"), "gives different outputs for the same samples"),
        (model("AcrossSamples"), "depends on the other samples of its batch"),
        (model("Mask"), "cannot be skipped in a step"),
        (model("Conv", "freeze.buffers=live"), "norm, a BatchNorm2d, is not held .*; give freeze.buffers=frozen"),
        (
            model("Dropped", "freeze.patterns=[first,inner]", "freeze.keep=[]"),
            "act, a Dropout, is not held .* add act to freeze.patterns",
        ),
        (model("Conv", "freeze.patterns=[inner]", "freeze.keep=[]"), "no single module's output"),
        (model("Conv", "freeze.patterns=['@head']", "freeze.keep=[]"), "no single module's output"),
        (model("Conv", "freeze.patterns=[]", "freeze.keep=[]"), "nothing is frozen"),
        (
            model("Conv", "data=custom", f"data._target_={HERE}Named", *task("by_name")),
            "cannot be divided into samples: its part name is not a tensor",
        ),
        (
            model("Conv", "data=custom", f"data._target_={HERE}Weighted", *task("by_name")),
            "cannot be divided into samples: its part weights has 10 rows, and its part x has 4",
        ),
        (model("Conv", "task=custom", f"task._target_={HERE}Flips"), "gives different outputs"),
        (model("Conv", "task=custom", f"task._target_={HERE}FlipsInPlace"), "gives different outputs"),
        (model("Conv", "task=custom", f"task._target_={HERE}Twice"), "the task calls the model 3 times in a step"),
        (model("Conv", "task=custom", f"task._target_={HERE}InParts"), "the task calls the model 0 times in a step"),
    ],
    ids=str,
)
def test_a_run_that_cannot_use_the_cache_is_skipped_with_the_reason(overrides, reason):
    with pytest.raises(SkippedError, match=reason):
        run_experiment("method=cached_prefix", *FROZEN, *overrides, "data.epochs=2")


@pytest.mark.parametrize(
    ("overrides", "boundary"),
    [
        (model("Noisy"), "norm"),
        (model("Noisy", "freeze.patterns=[first,norm,inner]", "freeze.keep=[]"), "norm"),
        (model("DropoutInHead", "freeze.patterns=[first,norm,inner]", "freeze.keep=[]"), "flat"),
    ],
    ids=str,
)
def test_layers_after_which_outputs_differ_run_and_what_comes_before_them_is_cached(overrides, boundary):
    plain, cached = run_both(*overrides)
    assert_same_bits(plain, cached)
    (note,) = notes_of_method(cached)
    assert note.startswith(f"the outputs of {boundary} are cached, and what follows it runs: ")


def test_a_prefix_with_dropout_in_eval_mode_is_cached():
    assert_same_bits(*run_both(*model("Dropped")))


class Named:
    """Batches with a part that is no tensor."""

    def __iter__(self):
        while True:
            yield {"x": torch.randn(4, 3, 8, 8), "y": torch.zeros(4, dtype=torch.long), "name": "a"}


class Weighted:
    """Batches with a tensor that has no row per sample."""

    def __iter__(self):
        while True:
            yield {"x": torch.randn(4, 3, 8, 8), "y": torch.zeros(4, dtype=torch.long), "weights": torch.ones(10)}


class Flips:
    """Changes the samples at random before they reach the model."""

    def __call__(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model(x.flip(-1) if torch.rand(()) < 0.5 else x * 1), y)


class FlipsInPlace:
    def __call__(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model(x.add_(torch.rand(()))), y)


class Weighs:
    """Its loss depends on the values of the samples."""

    def __call__(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model(x), y) * x.abs().mean()


class Twice:
    """Calls the model twice for one step, once without a graph."""

    def __call__(self, model, batch):
        x, y = batch
        with torch.no_grad():
            before = model(x)
        return functional.cross_entropy(model(x), y) + before.softmax(-1).square().mean() + 0.1 * model(x).square().mean()


class InParts:
    """Calls the layers of the model, not the model."""

    def __call__(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model.head(model.flat(functional.max_pool2d(model.inner(model.first(x)), 2))), y)


@pytest.mark.parametrize("name", ["AroundTheEnd", "Conv"])
def test_what_uses_the_samples_beside_the_prefix_gets_the_real_ones(name):
    assert_same_bits(*run_both(*model(name), "task=custom", f"task._target_={HERE}Weighs"))


# Data


class Sized:
    """Batches of the given sizes; with `nan`, the first sample of each is NaN."""

    def __init__(self, sizes, nan=False):
        self.sizes, self.nan = sizes, nan

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for size in self.sizes:
            x = torch.randn(size, 3, 8, 8, generator=generator)
            if self.nan:
                x[0] = float("nan")
            yield x, torch.arange(size) % 10


class Augments:
    """Yields other random samples in each pass."""

    def __iter__(self):
        while True:
            yield torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)


def data_from(source, *more):
    """Return the overrides that use a data source of this file."""
    return ("data=custom", f"data._target_={HERE}{source}", *more)


def test_a_last_batch_of_another_size_is_cached_with_a_note():
    plain, cached = run_both(*model("Conv"), *data_from("Sized", "data.sizes=[4,4,3]"))
    assert len(cached.steps) == 9
    assert any("batches have more than one size" in note for note in notes_of_method(cached))
    assert cached.losses == pytest.approx(plain.losses, rel=1e-4)


def test_nan_is_cached_unchanged():
    plain, cached = run_both(*model("Conv"), *data_from("Sized", "data.sizes=[4,4]", "data.nan=true"))
    assert [str(loss) for loss in plain.losses] == [str(loss) for loss in cached.losses]
    assert plain.record["trained_digest"] == cached.record["trained_digest"]


def test_other_samples_in_each_pass_are_never_given_an_output_of_an_earlier_pass():
    assert_same_bits(*run_both(*model("Conv"), *data_from("Augments")))


# Samples are recognised by their bits


def fed(batches):
    """Return how often the prefix of a model runs while `cached_prefix` feeds it these batches; each output is checked."""
    torch.manual_seed(0)
    net = Conv()
    selection = select(net, ["**"], ["head"], buffers="frozen")
    for module in selection.modules.values():
        module.eval()
    method, outputs, calls = CachedPrefix(epochs=2), [], []
    method.example = Example(sum_of_output, batches[0])
    assert method.skip(net, selection) is None
    first = net.first

    def count(module, args, output):
        if module is first and not output.is_meta:
            calls.append(1)

    with ExitStack() as undo:
        first.register_forward_hook(count)
        method.prepare(net, selection, undo)
        context = PhaseContext(net, sum_of_output, ignore_note)
        outputs.extend(net(batch).detach() for batch in method.feed(batches, context))
    runs = len(calls)
    with torch.no_grad():
        assert all(same_bits(output, net(batch)) for output, batch in zip(outputs, batches, strict=True))
    return runs


def pictures(seed=0):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_samples_that_come_again_in_other_batches_and_at_other_places_are_not_computed_again():
    one, other = pictures(0), pictures(1)
    mixed = [torch.cat([one[2:], other[:2]]), torch.cat([other[2:], one[:2]]), one.flip(0)]
    assert fed([one, other, *mixed]) == 2


def test_a_batch_with_one_sample_of_other_bits_is_computed_again():
    changed = pictures()
    changed[3, 0, 0, 0] = torch.nextafter(changed[3, 0, 0, 0], torch.tensor(9.0))
    assert fed([pictures(), pictures(), changed, changed]) == 2


def test_the_same_sample_twice_in_a_batch_is_stored_once():
    repeated = pictures()[[0, 0, 1, 1]]
    assert fed([repeated, repeated, repeated.flip(0)]) == 1


class Transforms:
    """Reads a batch; when it is read again, one part has other bits."""

    def __init__(self, name):
        self.name = name

    def __call__(self):
        return {"x": pictures(), "y": torch.zeros(4)} | ({self.name: pictures(1)} if self.name else {})


@pytest.mark.parametrize("name", [None, "x", "z"])
def test_data_that_read_a_sample_with_other_bits_the_second_time_are_skipped_with_the_part_that_differs(name):
    net, method = Conv(), CachedPrefix(epochs=2)
    method.example = Example(lambda net, batch: net(batch["x"]).sum(), Transforms(None)(), reread=Transforms(name))
    reason = method.skip(net, select(net, ["**"], ["head"], buffers="frozen"))
    expected = f"a batch has other bits when it is read again: its part {name}, as with a random transform or collate"
    assert reason == (expected if name else None)


def test_data_are_read_again_once_however_often_more_is_frozen():
    method, net, read = CachedPrefix(epochs=3), MLP([1, 4, 4], 8, 2), []
    batch = torch.ones(4, 1, 4, 4)
    method.example = Example(lambda net, batch: net(batch).sum(), batch, reread=lambda: read.append(1) or batch)
    for patterns in (["body"], ["body", "norm"]):
        assert method.skip(net, select(net, patterns, buffers="frozen")) is None
    assert read == [1]


class Late:
    """A task that is ended by the timeout of the run when it is called for the time number `last`."""

    def __init__(self, last):
        self.last, self.calls = last, []

    def __deepcopy__(self, memo):
        return self

    def __call__(self, net, batch):
        self.calls.append(batch)
        if len(self.calls) == self.last:
            raise TimeoutError("the run was not done")
        return net(batch).sum()


def test_a_timeout_of_the_run_is_not_taken_for_a_reason_to_skip_it():
    net, batch = MLP([1, 4, 4], 8, 2), torch.ones(4, 1, 4, 4)
    selection = select(net, ["body"], buffers="frozen")
    net.body.requires_grad_(False)

    def try_with(task):
        method = CachedPrefix(epochs=2)
        method.example = Example(task, batch)
        assert method.skip(net, selection) is None
        method.checked_recording(batch, batch_format(batch), PhaseContext(net, task, ignore_note))

    try_with(never := Late(0))
    assert len(never.calls) > 10
    for last in range(1, len(never.calls) + 1):
        with pytest.raises(TimeoutError):
            try_with(Late(last))


def test_with_one_epoch_data_are_not_read_again():
    net, method = Conv(), CachedPrefix(epochs=1)
    method.example = Example(sum_of_output, pictures(), reread=lambda: 1 / 0)
    assert method.skip(net, select(net, ["**"], ["head"], buffers="frozen")) is None


# Phases


def test_a_prefix_that_is_frozen_later_is_cached_from_then_on():
    more = (*model("Counted"), "schedule=after", "schedule.step=5", "batches=3", "cost=off")
    plain, cached = run_both(*more, epochs=5)
    assert_same_bits(plain, cached)
    CALLS.clear()
    run_experiment("method=cached_prefix", *FROZEN, *more, "data.epochs=9")
    longer = len(CALLS)
    CALLS.clear()
    run_experiment("method=cached_prefix", *FROZEN, *more, "data.epochs=5")
    assert longer == len(CALLS)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_prefix_that_leaks_empties_the_memory_so_that_nothing_trains_on_what_is_stale(optimizer):
    more = (*model("Counted"), "schedule=after", "schedule.step=5", "batches=3", "zero_grad_to_none=false", "cost=off")
    plain, cached = run_both(*more, f"optimizer={optimizer}", epochs=5)
    assert {row["verdict"] for row in plain.rows if row["frozen"] and row["kind"] == "parameter"} == {"leaked"}
    assert_same_bits(plain, cached)
    assert any(note.startswith("frozen layers changed") for note in cached.notes)


@pytest.mark.parametrize(
    "schedule", ["gradual", "gradual schedule.reverse=true", "linear_probe_then_finetune", "freeze_out"]
)
def test_the_memory_grows_and_shrinks_with_the_prefix_and_the_weights_are_those_of_requires_grad(schedule):
    more = (*model("Stages"), f"schedule={schedule.split()[0]}", *schedule.split()[1:], "batches=3", "optimizer=adamw")
    CALLS.clear()
    plain, cached = run_both(*more, epochs=8)
    assert_same_bits(plain, cached)
    assert [phase.rows for phase in plain.phases] == [phase.rows for phase in cached.phases]
    assert cached.record["cost"]["flops_forward"] < plain.record["cost"]["flops_forward"]


def test_a_prefix_that_is_not_trained_last_is_not_cached_and_the_run_says_why():
    with pytest.raises(SkippedError, match="no single module's output separates frozen from trained layers"):
        run_experiment("method=cached_prefix", *FROZEN, *model("Stages"), "schedule=block_coordinate", "data.epochs=4")


# Errors of the cache file


def run_cached(overrides, on_step):
    """Return the outcome of four epochs with `cached_prefix`."""
    return run_experiment("method=cached_prefix", *FROZEN, *model("Conv"), "data.epochs=4", *overrides, on_step=on_step)


@pytest.mark.parametrize("damage", ["flipped", "short"])
def test_outputs_in_a_damaged_file_are_computed_again_with_a_note_and_the_same_weights(damage, tmp_path):
    def on_step(step):
        (file,) = tmp_path.rglob("prefix")
        if step.number == 6:
            if damage == "flipped":
                file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
            else:
                os.truncate(file, 10)

    outcome = run_cached(("method.memory_mb=0.001", f"method.folder={tmp_path}"), on_step)
    assert_same_bits(run_experiment("method=requires_grad", *FROZEN, *model("Conv"), "data.epochs=4"), outcome)
    (note,) = notes_of_method(outcome)
    assert "is damaged" in note
    assert not list(tmp_path.iterdir())


@contextmanager
def file_size_limit(size):
    """Inside the block, files cannot become larger than `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 2000])
def test_on_a_full_disk_missing_outputs_are_computed_again_with_a_note(size, tmp_path):
    with file_size_limit(size):
        outcome = run_cached(("method.memory_mb=0", f"method.folder={tmp_path}"), lambda step: None)
    assert_same_bits(run_experiment("method=requires_grad", *FROZEN, *model("Conv"), "data.epochs=4"), outcome)
    (note,) = notes_of_method(outcome)
    assert "cannot all be cached ([Errno 27] File too large)" in note
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_for_the_file_gives_a_note(tmp_path):
    outcome = run_cached(("method.memory_mb=0", f"method.folder={tmp_path / 'nowhere'}"), lambda step: None)
    assert "cannot all be cached" in notes_of_method(outcome)[0]
    assert run_verdict(outcome.rows) == "held"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("step_number", [2, 6])
def test_a_run_that_ends_early_removes_its_file_and_restores_the_model(error, step_number, tmp_path):
    def on_step(step):
        if step.number == step_number:
            raise error

    given = ("method.memory_mb=0", f"method.folder={tmp_path}")
    if error is KeyboardInterrupt:
        outcome = run_cached(given, on_step)
        assert outcome.interrupted
        assert all("forward" not in vars(module) for module in outcome.model.modules())
    else:
        with pytest.raises(error):
            run_cached(given, on_step)
    assert not list(tmp_path.iterdir())


# Restoring the model


def state(model):
    """Return what `cached_prefix` may change of a model: instance attributes and modes of its modules."""
    return {name: (id(module), sorted(vars(module)), module.training) for name, module in model.named_modules()}


def test_the_model_is_restored_and_a_copy_made_meanwhile_runs_the_prefix():
    model = MLP([8])
    instance_forward = vars(model.norm)["forward"] = model.norm.forward
    selection = select(model, ["**"], ["head"], buffers="frozen")
    before = state(model)
    method = CachedPrefix(epochs=2)
    x = torch.randn(4, 8)
    method.example = Example(sum_of_output, x)
    with ExitStack() as undo:
        assert method.skip(model, selection) is None
        assert state(model) == before
        for module in selection.modules.values():
            module.eval()
        expected = model(x)
        method.prepare(model, selection, undo)
        assert torch.equal(model(x), expected)
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied.body.weight.zero_()
        assert not torch.equal(copied(x), expected)
        assert torch.equal(model(x), expected)
    model.train()
    assert state(model) == before
    assert vars(model.norm)["forward"] is instance_forward


def test_the_check_changes_neither_weights_nor_random_state():
    model = MLP([8])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    method = CachedPrefix(epochs=2)
    method.example = Example(sum_of_output, torch.rand(4, 8, generator=torch.Generator()))
    assert method.skip(model, select(model, ["**"], ["head"], buffers="frozen")) is None
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_is_refused_with_the_same_reason_as_a_run(cli):
    given = ("model=mlp", "method=cached_prefix", "data.epochs=2", "freeze=backbone", "plan=true")
    assert cli(*given, "freeze.buffers=frozen")[0] == 0
    code, _, err = cli(*given)
    assert code == 2
    assert "norm, a BatchNorm1d, is not held in eval mode" in err

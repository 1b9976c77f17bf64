"""The cached prefix: the bits of `requires_grad`, the prefix run once a sample, and a reason where that cannot be."""

from __future__ import annotations

import copy
import os
import resource
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from runner.errors import SkippedError
from runner.freezing.selection import select
from runner.methods.cached_prefix import CachedPrefix
from runner.proof.verdict import run_verdict
from runner.tensors import same_bits
from runner.training.models import MLP
from tests.measure import measure

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = "tests.methods.test_cached_prefix."
FROZEN = ("freeze=backbone", "freeze.buffers=frozen")
CALLS: list[int] = []


def beside_selection(outcome) -> list[str]:
    """A run's notes, but for those of its selection."""
    return [note for note in outcome.notes if note not in outcome.selection.notes]


def model(name, *more):
    return ("model=custom", f"model.build._target_={HERE}{name}", "model.input=[3,8,8]", "model.classes=10", *more)


def both(*overrides, epochs=3, options=()):
    """The run under `requires_grad`, and that under `cached_prefix`."""
    given = (*FROZEN, *overrides, f"data.epochs={epochs}")
    return measure("method=requires_grad", *given), measure("method=cached_prefix", *options, *given)


def assert_same_bits(one, other):
    assert one.losses == other.losses
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in ours if not same_bits(ours[name], theirs[name])] == []
    assert one.figures["trained_digest"] == other.figures["trained_digest"]
    rows = [[(row["name"], row["verdict"], row["change_l2"], row["group"]) for row in it.rows] for it in (one, other)]
    assert rows[0] == rows[1]


class Conv(nn.Module):
    """A convolution, a BatchNorm, and a residual step of functions between modules."""

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
    """Counts the calls of its prefix where they are real."""

    def __init__(self):
        super().__init__()
        self.first = CountedConv(3, 6, 3, padding=1)


class CountedConv(nn.Conv2d):
    def forward(self, x):
        CALLS.append(1)
        return super().forward(x)


class Shapes(Conv):
    """Reads shapes, and tells by them what to do."""

    def forward(self, x):
        n, c, h, w = x.shape
        x = self.first(x.reshape(n, c, h, w))
        x = self.norm(x if x.size(1) == 6 else x[:, :6])
        x = self.inner(x).view(n, 6, -1, w)
        return self.head(self.flat(x.reshape(n, 6, h // 2, 2, w // 2, 2).amax((3, 5))))


class Token(nn.Module):
    """Puts a parameter of its own in front by a function, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(64, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.embed(x.flatten(2))
        return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class InPlace(Conv):
    """Writes in place, and lies in channels_last behind its first module."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = self.act(self.norm(self.first(x.contiguous(memory_format=torch.channels_last))))
        x += self.inner(x)
        return self.head(self.act(x))


class HeadThatDraws(Conv):
    """A head with dropout and a BatchNorm that trains."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(96), nn.Linear(96, 10))


class Deep(nn.Module):
    """The prefix ends within a Sequential within a ModuleList, and one activation serves all of it."""

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
    **{name: model(name) for name in ("Conv", "Shapes", "Token", "InPlace", "HeadThatDraws", "Deep")},
}
HEADS = ("model.head=head",)


@pytest.mark.parametrize("memory_mb", [0, 0.001, 1024])
@pytest.mark.parametrize("name", SMALL)
def test_the_weights_have_the_bits_that_requires_grad_gives_them(name, memory_mb):
    one, other = both(*SMALL[name], "batches=4", options=(f"method.memory_mb={memory_mb}",))
    assert_same_bits(one, other)
    assert beside_selection(other) == []
    assert run_verdict(other.rows) == "held"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "asgd", "lbfgs", "rmsprop", "rprop", "sgd"])
@pytest.mark.parametrize("epochs", [2, 5])
def test_so_it_does_under_every_optimizer(optimizer, epochs):
    more = ("groups=one", "optimizer.max_iter=3") if optimizer == "lbfgs" else ()
    assert_same_bits(*both(*model("HeadThatDraws"), f"optimizer={optimizer}", *more, epochs=epochs))


@pytest.mark.parametrize("more", [("clip=0.1",), ("autocast=true",), ("scheduler=one_cycle",), ("zero_grad_to_none=false",)])
def test_so_it_does_with_everything_else_that_a_step_has(more):
    one, other = both(*model("Conv"), *more)
    assert_same_bits(one, other)
    assert beside_selection(other) == []


@pytest.mark.parametrize("data", ["data=digits", "data=synthetic"])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_so_it_does_at_every_size_of_a_batch(data, size):
    assert_same_bits(*both(*model("Conv"), data, f"data.batch_size={size}"))


def test_with_two_threads_the_bits_are_the_same_or_a_note_says_by_how_much_not():
    one, other = both(*SMALL["resnet18"], "threads=2", "data.batch_size=8")
    if not beside_selection(other):
        assert_same_bits(one, other)
    assert other.losses == pytest.approx(one.losses, rel=1e-4)


def test_the_prefix_may_end_within_a_container():
    freeze = ("freeze.patterns=[parts]", "freeze.keep=[parts.1.3]")
    assert_same_bits(*both(*model("Deep", *freeze)))


def test_where_everything_is_frozen_the_output_of_the_model_is_what_is_remembered():
    CALLS.clear()
    one, other = both(*model("Counted"), "freeze.patterns=['**']", "freeze.keep=[]", "batches=3")
    assert one.losses == other.losses
    assert run_verdict(other.rows) == "held"


# How often it runs


def real_calls(*overrides, epochs=3, options=()):
    """How often the prefix runs beyond what the trial of it takes, which is as much for one batch as for many."""
    counts = []
    for batches in (3, 7):
        CALLS.clear()
        given = (*model("Counted"), *FROZEN, f"data.epochs={epochs}", f"batches={batches}", "cost=off", *options, *overrides)
        measure("method=cached_prefix", *given)
        counts.append(len(CALLS))
    return (counts[1] - counts[0]) / 4


@pytest.mark.parametrize("epochs", [2, 5])
@pytest.mark.parametrize("memory_mb", [0, 1024])
def test_the_prefix_runs_once_a_batch_however_many_passes(epochs, memory_mb):
    assert real_calls(epochs=epochs, options=(f"method.memory_mb={memory_mb}",)) == 1
    assert real_calls("optimizer=adam", epochs=epochs) == 1


class Watched(CachedPrefix):
    """Notes what the first module gives, in the training itself."""

    gave: ClassVar[list[torch.Tensor]] = []

    def prepare(self, model, selection, undo):
        first = model.first
        undo.callback(
            first.register_forward_hook(lambda it, _, output: self.gave.append(output) if it is first else None).remove
        )
        return super().prepare(model, selection, undo)


def test_in_the_training_itself_it_runs_as_often_as_there_are_batches():
    Watched.gave.clear()
    given = ("method.epochs=4", "method.input=[3,8,8]", *model("Conv"), *FROZEN, "data.epochs=4", "batches=3")
    measure("method=cached_prefix", f"method._target_={HERE}Watched", *given)
    assert [output.is_meta for output in Watched.gave] == [False] * 3 + [True] * 9


def test_one_pass_remembers_nothing_and_is_requires_grad():
    one, other = both(*model("Conv"), epochs=1)
    assert_same_bits(one, other)
    assert "data.epochs is 1" in beside_selection(other)[0]
    assert_same_bits(measure("freeze=head"), measure("method=cached_prefix", "freeze=head"))


# Why not


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


class Forgetful(Conv):
    """Gives something else each time, and draws nothing."""

    def forward(self, x):
        self.times = getattr(self, "times", 0) + 1
        return self.head(self.flat(functional.max_pool2d(self.inner(self.first(x * self.times)), 2)))


class AcrossSamples(Conv):
    """Normalises by the batch in eval mode, too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)


class AroundTheEnd(Conv):
    """Its input goes around the prefix."""

    def forward(self, x):
        return super().forward(x) + x.mean((1, 2, 3))[:, None]


class Mask(Token):
    """Looks at its input's values, and at its own token, and takes another head for what is large."""

    def forward(self, x):
        features = self.embed(x.flatten(2)) + self.token
        large = bool((features[:, 0, 0] > 1e20).any())
        out = self.head(self.encoder(features)[:, 0])
        return -out if large else out


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (model("Noisy"), "gives other bits when it is run again"),
        (model("Noisy", "freeze.patterns=[first,norm,inner]", "freeze.keep=[]"), "act, a Noise, gives other bits when it"),
        (model("NoisyInBetween", "freeze.patterns=[first,norm,inner]", "freeze.keep=[]"), "gives other bits when it is run"),
        (model("Forgetful"), "gives other bits when it is run again"),
        (model("AcrossSamples"), "depends on the other samples of its batch"),
        (model("AroundTheEnd"), "cannot be left out of a step"),
        (model("Mask"), "cannot be left out of a step"),
        (model("Conv", "freeze.buffers=live"), "norm, a BatchNorm2d, is not held .*; give freeze.buffers=frozen"),
        (
            model("Dropped", "freeze.patterns=[first,inner]", "freeze.keep=[]"),
            "act, a Dropout, is not held .* match act, too",
        ),
        (model("Conv", "freeze.patterns=[inner]", "freeze.keep=[]"), "no single module's output"),
        (model("Conv", "freeze.patterns=['@head']", "freeze.keep=[]"), "no single module's output"),
        (model("Conv", "freeze.patterns=[]", "freeze.keep=[]"), "nothing is frozen"),
        (model("Conv", "data=custom", f"data._target_={HERE}Dicts"), r"batches that are not \(tensor, ...\)"),
        (model("Conv", "task=custom", f"task._target_={HERE}Flips"), "something else than the samples of a batch"),
        (model("Conv", "task=custom", f"task._target_={HERE}FlipsInPlace"), "gives other bits|as they are"),
        (model("Conv", "task=custom", f"task._target_={HERE}Weighs"), "cannot be left out of a step"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_skipped_with_the_reason(overrides, reason):
    with pytest.raises(SkippedError, match=reason):
        measure("method=cached_prefix", *FROZEN, *overrides, "data.epochs=2")


def test_dropout_that_is_held_is_served():
    assert_same_bits(*both(*model("Dropped")))


class Dicts:
    def batches(self, count, input, classes, seed):
        for _ in range(count):
            yield {"x": torch.randn(4, *input), "y": torch.zeros(4, dtype=torch.long)}


class Flips:
    """Augments what it is given."""

    def __call__(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model(x.flip(-1) if torch.rand(()) < 0.5 else x * 1), y)


class FlipsInPlace:
    def __call__(self, model, batch):
        x, y = batch
        return functional.cross_entropy(model(x.add_(torch.rand(()))), y)


class Weighs:
    """Takes the samples' own values into the loss."""

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


def test_a_task_may_call_the_model_several_times():
    assert_same_bits(*both(*model("InPlace"), "task=custom", f"task._target_={HERE}Twice"))


# Data


class Sized:
    """Batches of several sizes; with `nan`, samples without numbers."""

    def __init__(self, sizes, nan=False):
        self.sizes, self.nan = sizes, nan

    def batches(self, count, input, classes, seed):
        generator = torch.Generator().manual_seed(seed)
        for size in self.sizes:
            x = torch.randn(size, *input, generator=generator)
            if self.nan:
                x[0] = float("nan")
            yield x, torch.arange(size) % classes


class Augments:
    """Gives the same samples at each call of `batches`, with other noise."""

    def batches(self, count, input, classes, seed):
        for _ in range(count):
            yield torch.randn(4, *input), torch.zeros(4, dtype=torch.long)


def of(source, *more):
    return ("data=custom", f"data._target_={HERE}{source}", *more)


def test_a_last_batch_of_another_size_is_served_and_said():
    one, other = both(*model("Conv"), *of("Sized", "data.sizes=[4,4,3]"))
    assert len(other.steps) == 9
    assert any("batches are of more than one size" in note for note in beside_selection(other))
    assert other.losses == pytest.approx(one.losses, rel=1e-4)


def test_what_is_no_number_is_remembered_as_it_is():
    one, other = both(*model("Conv"), *of("Sized", "data.sizes=[4,4]", "data.nan=true"))
    assert [str(loss) for loss in one.losses] == [str(loss) for loss in other.losses]
    assert one.figures["trained_digest"] == other.figures["trained_digest"]


def test_what_a_source_draws_at_random_is_drawn_once_and_comes_back():
    assert_same_bits(*both(*model("Conv"), *of("Augments")))


# Phases


def test_a_prefix_that_is_frozen_later_is_remembered_from_then_on():
    more = (*model("Counted"), "schedule=after", "schedule.step=5", "batches=3", "cost=off")
    one, other = both(*more, epochs=5)
    assert_same_bits(one, other)
    CALLS.clear()
    measure("method=cached_prefix", *FROZEN, *more, "data.epochs=9")
    longer = len(CALLS)
    CALLS.clear()
    measure("method=cached_prefix", *FROZEN, *more, "data.epochs=5")
    assert longer == len(CALLS)


# Where it cannot be kept


def trained(overrides, on_step):
    return measure("method=cached_prefix", *FROZEN, *model("Conv"), "data.epochs=4", *overrides, on_step=on_step)


@pytest.mark.parametrize("damage", ["flipped", "short"])
def test_a_damaged_file_is_said_and_computed_again_with_the_same_weights(damage, tmp_path):
    def on_step(step):
        (file,) = tmp_path.rglob("prefix")
        if step.number == 6:
            if damage == "flipped":
                file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
            else:
                os.truncate(file, 10)

    got = trained(("method.memory_mb=0.002", f"method.folder={tmp_path}"), on_step)
    assert_same_bits(measure("method=requires_grad", *FROZEN, *model("Conv"), "data.epochs=4"), got)
    (note,) = beside_selection(got)
    assert "is damaged" in note
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size):
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


@pytest.mark.parametrize("size", [100, 2000])
def test_a_full_disk_is_said_and_what_is_missing_computed_again(size, tmp_path):
    with files_of_at_most(size):
        got = trained(("method.memory_mb=0", f"method.folder={tmp_path}"), lambda step: None)
    assert_same_bits(measure("method=requires_grad", *FROZEN, *model("Conv"), "data.epochs=4"), got)
    (note,) = beside_selection(got)
    assert "cannot all be remembered ([Errno 27] File too large)" in note
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said(tmp_path):
    got = trained(("method.memory_mb=0", f"method.folder={tmp_path / 'nowhere'}"), lambda step: None)
    assert "cannot all be remembered" in beside_selection(got)[0]
    assert run_verdict(got.rows) == "held"


@pytest.mark.parametrize("ends", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("at", [2, 6])
def test_nothing_stays_of_a_run_that_is_ended(ends, at, tmp_path):
    def on_step(step):
        if step.number == at:
            raise ends

    given = ("method.memory_mb=0", f"method.folder={tmp_path}")
    if ends is KeyboardInterrupt:
        got = trained(given, on_step)
        assert got.interrupted
        assert all("forward" not in vars(module) for module in got.model.modules())
    else:
        with pytest.raises(ends):
            trained(given, on_step)
    assert not list(tmp_path.iterdir())


# Undone


def state(model):
    return {name: (id(module), sorted(vars(module)), module.training) for name, module in model.named_modules()}


def test_leaving_undoes_all_and_a_copy_made_meanwhile_runs_as_it_is():
    model = MLP([8])
    own = vars(model.norm)["forward"] = model.norm.forward
    selection = select(model, ["**"], ["head"], buffers="frozen")
    before = state(model)
    chosen = CachedPrefix([8], epochs=2)
    x = torch.randn(4, 8)
    with ExitStack() as undo:
        assert chosen.skip(model, selection) is None
        assert state(model) == before
        for module in selection.modules.values():
            module.eval()
        expected = model(x)
        chosen.prepare(model, selection, undo)
        assert torch.equal(model(x), expected)
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied.body.weight.zero_()
        assert not torch.equal(copied(x), expected)
        assert torch.equal(model(x), expected)
    model.train()
    assert state(model) == before
    assert vars(model.norm)["forward"] is own


def test_looking_whether_it_serves_changes_nothing():
    model = MLP([8])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    CachedPrefix([8], epochs=2).skip(model, select(model, ["**"], ["head"], buffers="frozen"))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_says_what_a_run_would(door):
    given = ("model=mlp", "method=cached_prefix", "data.epochs=2", "freeze=backbone", "plan=true")
    assert door(*given, "freeze.buffers=frozen")[0] == 0
    code, _, err = door(*given)
    assert code == 2
    assert "norm, a BatchNorm1d, is not held in eval mode" in err

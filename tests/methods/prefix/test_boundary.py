"""`frozen_prefix` finds the module whose output is all that the trainable part gets."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from threading import Lock

import pytest
import torch
from torch import nn

from runner.errors import SkippedError
from runner.freezing.selection import select
from runner.methods.base import Example
from runner.methods.cached_prefix import CachedPrefix
from runner.methods.detach import Detach
from runner.methods.prefix.boundary import frozen_prefixes
from runner.training.models import MLP
from tests.in_memory import run_experiment


def sum_of_output(model, batch):
    return model(batch).sum()


def example(*shape):
    """Return a training step: the sum of the model's output for random samples, which leaves the random state as it is."""
    return Example(sum_of_output, torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def frozen_prefix(*arguments, **options):
    """Return the first of `frozen_prefixes`, or None if it raises SkippedError."""
    with suppress(SkippedError):
        return next(frozen_prefixes(*arguments, **options))


class Residual(nn.Module):
    """`first`, then `inner` with a residual connection, then `last`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.inner(x).relu())


@pytest.mark.parametrize(
    ("patterns", "boundary"),
    [
        (["first"], "first"),
        (["first", "inner"], None),  # the trainable part gets a sum, which no module returns
        (["inner"], None),
        (["last"], None),
        (["first", "last"], None),
        (["**"], ""),
    ],
)
def test_the_boundary_is_the_module_whose_output_is_all_that_the_trainable_part_gets(patterns, boundary):
    model = Residual()
    assert frozen_prefix(model, select(model, patterns), example(2, 4)) == boundary


def test_a_frozen_weight_that_is_used_again_by_the_trainable_part_is_no_prefix():
    model = MLP([8])
    assert frozen_prefix(model, select(model, ["body", "norm", "there"]), example(2, 8)) is None
    assert frozen_prefix(model, select(model, ["body", "norm"]), example(2, 8)) == "norm"


def test_finding_the_prefix_changes_neither_model_nor_random_state():
    model = MLP([8])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    frozen_prefix(model, select(model, ["body"]), example(2, 8))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("freeze", ["freeze=backbone", "freeze.patterns=[body, norm]"])
def test_detach_trains_like_requires_grad_and_the_prefix_gets_no_gradient(freeze):
    detach, requires_grad = (run_experiment(f"method={method}", freeze) for method in ("detach", "requires_grad"))
    assert detach.record["trained_digest"] == requires_grad.record["trained_digest"]
    assert all(detach.model.get_parameter(name).grad is None for name in detach.selection.parameters)


def test_finding_the_prefix_of_a_model_that_uses_random_numbers_keeps_the_random_state():
    class Noisy(MLP):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    model = Noisy([8])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert frozen_prefix(model, select(model, ["body"]), example(2, 8)) == "body"
    assert torch.equal(torch.rand(2), expected)


def test_a_forward_pass_that_raises_leaves_gradients_enabled():
    class Raises(MLP):
        def forward(self, x):
            raise KeyError("mine")

    model = Raises([8])
    method = Detach()
    method.boundary, method.checked_selection = "norm", select(model, ["body", "norm"])
    with ExitStack() as undo:
        method.prepare(model, method.checked_selection, undo)
        with pytest.raises(KeyError):
            model(torch.zeros(2, 8))
        assert torch.is_grad_enabled()


def test_when_the_prefix_grows_in_mid_run_the_new_prefix_gets_no_gradient():
    model = MLP([8])
    first, second = select(model, ["body"]), select(model, ["body", "norm"])
    method = Detach()
    method.example = example(4, 8)
    assert method.skip(model, second) is None
    x = torch.randn(4, 8)
    for selection in (first, second):
        with ExitStack() as undo:
            method.prepare(model, selection, undo)
            model.zero_grad()
            model(x).sum().backward()
            reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
            assert reached == {name for name, parameter in model.named_parameters() if parameter not in selection}


class Detector(nn.Module):
    """Returns losses in training mode and predictions in eval mode, as detection models do."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, pictures, targets):
        scores = self.head(self.norm(self.body(torch.stack(pictures))))
        return {"score": (scores - torch.stack(targets)).square().mean()} if self.training else [scores]


def test_the_step_is_tried_in_the_modes_of_the_training():
    model = Detector().eval()
    batch = ([torch.randn(4) for _ in range(3)], [torch.randn(2) for _ in range(3)])
    step = Example(lambda model, batch: model(*batch)["score"], batch)
    assert frozen_prefix(model, select(model, ["body"]), step) == "body"
    held = select(model, ["body", "norm"], buffers="frozen")
    one_sample = Example(step.task, tuple(part[:1] for part in batch))  # BatchNorm in training mode refuses it
    assert frozen_prefix(model, held, one_sample) == "norm"
    assert not model.training


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (lambda model, batch: (model(batch) - model(batch + 1)).sum(), "the task calls the model 2 times in a step"),
        (lambda model, batch: model.last(model.first(batch)).sum(), "the task calls the model 0 times in a step"),
    ],
)
@pytest.mark.parametrize("method", [Detach(), CachedPrefix(epochs=2)])
def test_a_task_that_does_not_call_the_model_once_is_a_reason_to_skip(method, task, reason):
    model = Residual()
    method.example = Example(task, torch.randn(3, 4))
    assert method.skip(model, select(model, ["first"], buffers="frozen")).startswith(reason)


@pytest.mark.parametrize("method", [Detach(), CachedPrefix(epochs=2)])
def test_a_method_without_an_example_is_skipped_with_the_reason(method):
    model = Residual()
    assert method.skip(model, select(model, ["first"], buffers="frozen")).startswith("there is no batch to look for")


class Task:
    """A task that counts its calls and refers to a model."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, model, batch):
        self.calls += 1
        assert self.model is model
        return model(batch).sum()


def test_a_task_is_tried_as_a_copy_that_refers_to_the_copy_of_the_model():
    model = Residual()
    task = Task(model)
    assert frozen_prefix(model, select(model, ["first"]), Example(task, torch.randn(3, 4))) == "first"
    assert task.calls == 0


def test_a_task_that_cannot_be_copied_is_a_reason_to_skip():
    model, method = Residual(), Detach()
    task = Task(model)
    task.lock = Lock()
    method.example = Example(task, torch.randn(3, 4))
    assert method.skip(model, select(model, ["first"])).startswith("model and task cannot be copied")


def test_what_the_task_raises_is_passed_on():
    model, method = Residual(), Detach()
    method.example = Example(sum_of_output, torch.randn(3, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        method.skip(model, select(model, ["first"]))


def test_frozen_integers_are_left_as_they_are():
    model = Residual()
    model.first.codes = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    assert frozen_prefix(model, select(model, ["first"]), example(2, 4)) == "first"


def test_a_frozen_weight_may_be_used_again_only_where_that_is_allowed():
    model = MLP([8])
    selection = select(model, ["body", "norm", "there"])
    assert frozen_prefix(model, selection, example(2, 8), may_use_again=True) == "there"
    assert frozen_prefix(model, selection, example(2, 8)) is None


def test_with_the_model_and_the_batch_on_the_meta_device_the_prefix_is_found():
    model, step = Residual().to("meta"), Example(sum_of_output, torch.randn(3, 4, device="meta"))
    assert frozen_prefix(model, select(model, ["first"]), step) == "first"

"""Copies of a model to count steps on: with values where a step is quick, and without where it is not."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from runner.cost.flops import META, REAL, StepCount, run_and_count
from runner.cost.operators.outline import NotOutlinedError, Outline
from runner.seeding import preserve_random_state, random_state, without_garbage_collection
from runner.tensors import is_compiled, map_tensors, tensor_entries, tensors_in
from runner.training.loop import Task

MOST_COPIED = 2**22  # elements of a model that is copied with its values
QUICK_PRODUCTS = 2**20  # weights x elements of the batch, for each tensor: computing as many takes about a millisecond


@dataclass(frozen=True)
class ModelCopy:
    """A copy of a model to count steps on, which counting may change.

    Hooks, `requires_grad` and tied parameters are as in the model. The tensors may be without values: they have device,
    dtype and shape, so that nothing is computed. Operators select the same kernels as on real tensors. Such tensors are
    outlines, or torch's fake tensors, which know more operators and other devices but take several times as long.
    Source: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html

    Attributes:
        model: the copy.
        mode: torch's context manager in which operators work on fake tensors; None if the tensors are others.
        is_outlined: whether its tensors are outlines. Counting does not change such a copy.
    """

    model: nn.Module
    mode: FakeTensorMode | None = None
    is_outlined: bool = False

    @classmethod
    def outlined(cls, model: nn.Module) -> ModelCopy:
        """Return a copy of a model with outlines in place of its parameters and buffers; raises NotOutlinedError."""
        if is_compiled(model):
            raise NotOutlinedError("a compiled model")
        return cls(_copy(model, Outline.like), is_outlined=True)

    @property
    def has_values(self) -> bool:
        """Whether the tensors of the copy have values."""
        return self.mode is None and not self.is_outlined

    @classmethod
    def without_values(cls, model: nn.Module) -> ModelCopy:
        """Return a copy of a model with fake tensors in place of its parameters and buffers.

        For tensors on the meta device, which have no values either, the fake ones are on the CPU.
        """
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # the model may use tensors that it keeps outside its modules
        return cls(_copy(model, partial(_fake_of, mode)), mode)

    @classmethod
    def fastest(cls, model: nn.Module) -> ModelCopy:
        """Return a copy of a model without values: of outlines if they can stand for all of its tensors."""
        with suppress(NotOutlinedError):
            return cls.outlined(model)
        return cls.without_values(model)

    @classmethod
    def of(cls, model: nn.Module, *, may_have_values: bool = True) -> ModelCopy:
        """Return a copy of a model in train mode, as it is trained; with values if it may have them and is small."""
        with without_garbage_collection():
            copied = cls(copy.deepcopy(model)) if may_have_values and is_small(model) else cls.fastest(model)
        copied.model.train()
        return copied

    @classmethod
    def unfrozen(cls, model: nn.Module) -> ModelCopy:
        """Return a copy in which every parameter that can have a gradient requires one; otherwise as `of` does."""
        copied = cls.of(model)
        require_gradients(copied.model)
        return copied

    @property
    def structure(self) -> list[Any]:
        """What decides, besides the code, how a step without values runs: modules, modes, tensors and flags."""
        modules = [(name, type(module).__qualname__, module.training) for name, module in self.model.named_modules()]
        tensors = chain(self.model.named_parameters(), self.model.named_buffers())
        return [modules, [(name, tuple(t.shape), str(t.dtype), t.requires_grad) for name, t in tensors]]

    def with_values(self, tensors: Mapping[str, Tensor]) -> ModelCopy:
        """Return a copy of this copy that has the values of tensors of the same names."""
        names = {id(entry.tensor): name for name, entry in tensor_entries(self.model).items()}
        return ModelCopy(_copy(self.model, lambda tensor: _valued(tensor, tensors[names[id(tensor)]])))

    def count(self, task: Task, batch: Any) -> StepCount:
        """Return the FLOPs and memory of one forward and backward pass of this copy.

        `task`: a function (model, batch) -> loss. `batch`: a real batch, of which only the shapes and dtypes of the tensors
        are used if the copy has no values. Then an error is raised if the forward pass needs the values of tensors, as
        `tensor.item()` does.
        """
        with preserve_random_state(), _without_fused_attention(), without_garbage_collection():
            if self.is_outlined:
                with suppress(Exception):  # outlines do not know every operator; any other error is raised again below
                    outlined = _copy(self.model, Outline.like), task, map_tensors(batch, Outline.like)
                    return _unless_drawn(lambda: run_and_count(*outlined, META))
                return ModelCopy.without_values(self.model).count(task, batch)
            if self.mode is None:
                return run_and_count(self.model, task, map_tensors(batch, Tensor.clone), REAL)
            return _unless_drawn(lambda: self._count_on_fake_tensors(task, batch))

    def _count_on_fake_tensors(self, task: Task, batch: Any) -> StepCount:
        """Return what `count` does, of a copy on fake tensors."""
        assert self.mode is not None
        with _without_log_of_fake_tensors(), self.mode:
            return run_and_count(self.model, task, map_tensors(batch, self.mode.from_tensor), META)


def _unless_drawn(count: Callable[[], StepCount]) -> StepCount:
    """Return `count()` on tensors without values, which depends on values if the code has drawn random numbers."""
    before = random_state()
    counted = count()
    return counted if random_state() == before else replace(counted, depends_on_values=True)


def count_step(model: nn.Module | ModelCopy, task: Task, batch: Any) -> StepCount:
    """Return the FLOPs and memory of one forward and backward pass, without changing the model or the random state.

    `task`: a function (model, batch) -> loss. The passes run on a copy of the model, or on `model` itself if it is one. The
    copy has fake tensors, so that nothing is computed, unless a step takes less time than that or needs values.
    Source: https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py,
    https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks
    """
    if isinstance(model, ModelCopy):
        if not model.has_values or is_quick(model.model, batch):
            return model.count(task, batch)
        model = model.model
    if not is_quick(model, batch):
        try:
            return ModelCopy.fastest(model).count(task, batch)
        except Exception:  # the forward pass may need values; any other error is raised again below
            pass
    return ModelCopy(copy.deepcopy(model)).count(task, batch)


def is_quick(model: nn.Module, batch: Any) -> bool:
    """Return whether a step probably takes less time than the same step on fake tensors, which take a millisecond each.

    Each weight is used at most about once for each element of the batch.
    """
    tensors = [*model.parameters(), *model.buffers()]
    elements, batch_elements = (sum(map(Tensor.numel, group)) for group in (tensors, tensors_in(batch)))
    return is_small(model) and elements * batch_elements <= QUICK_PRODUCTS * len(tensors)


def is_small(model: nn.Module) -> bool:
    """Return whether a model is on the CPU and has so few elements that it may be copied with its values."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(map(Tensor.numel, tensors)) <= MOST_COPIED and all(tensor.device.type == "cpu" for tensor in tensors)


def _copy(model: nn.Module, copy_of: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a deep copy of a model in which `copy_of(tensor)` takes the place of each parameter and buffer."""
    copies: dict[int, Any] = {id(entry.tensor): copy_of(entry.tensor) for entry in tensor_entries(model).values()}
    for module in model.modules():  # copying the empty dicts of hooks, a dozen in each module, takes most of the time
        copies |= {id(value): OrderedDict() for value in vars(module).values() if type(value) is OrderedDict and not value}
    return copy.deepcopy(model, copies)


def _fake_of(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """Return a fake tensor like the given one, without a gradient.

    It is on the CPU if the given one is an outline, or on the meta device.
    """
    if not tensor.is_meta and not isinstance(tensor, Outline):
        fake: Tensor = mode.from_tensor(tensor)
        fake.grad = None
        return fake
    with mode:
        fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _valued(fake: Tensor, tensor: Tensor) -> Tensor:
    """Return a copy of a tensor, a parameter if the fake one is, with its `requires_grad`."""
    values = tensor.detach().clone()
    return nn.Parameter(values, fake.requires_grad) if isinstance(fake, nn.Parameter) else values


def require_gradients(model: nn.Module) -> None:
    """Set `requires_grad` of every parameter that can have a gradient, which are those of floating or complex dtype."""
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Inside the `with` block, disable torch's fused transformer layer of eval mode, whose FLOPs torch does not count."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@contextmanager
def _without_log_of_fake_tensors() -> Iterator[None]:
    """Inside the `with` block, torch does not print the stack of an operator that cannot run on fake tensors."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled

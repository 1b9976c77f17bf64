"""Count the FLOPs and bytes of memory that one forward and backward pass take, on a copy of the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from runner.cost.counter import OperatorCounter, storages_in
from runner.seeding import preserve_random_state
from runner.tensors import map_tensors, tensor_entries, tensors_in
from runner.tracing import tracing
from runner.training.loop import Task

META, REAL = "a meta copy", "a real batch"
SMALL_MODEL, SMALL_BATCH = 2**18, 2**16  # elements; a step of this size takes less time than one without values


@dataclass(frozen=True)
class StepCount:
    """The FLOPs and memory that one forward and backward pass of a batch take.

    Attributes:
        flops_forward, flops_backward: floating-point operations in matrix products, convolutions and attention; other
            operations do not count.
        saved_bytes: bytes of the tensors that autograd saves for backward. Tensors that share memory count once. Parameters
            do not count, but a view of a parameter does, such as the transposed weight of a linear layer.
        gradient_bytes: bytes of all `.grad` tensors of parameters after backward.
        peak_bytes: bytes of the tensors made by forward and backward (gradients included), at the moment when these tensors
            take the most memory. Excludes memory that kernels use internally. Agrees with torch's profiler, which is slower.
        gradients: the names of the parameters that have a gradient after backward.
        parameter_order: the names of the parameters, in the order in which the forward pass calls their modules.
        flops_by_module: {module name: FLOPs of the module's forward pass, submodules included}; "" is the whole model.
        unpriced: the names of operators that may multiply matrices, but whose FLOPs are not known and not contained.
        counted_on: `a meta copy` (counted on fake tensors, which have no values) or `a real batch`.
    """

    flops_forward: int
    flops_backward: int
    saved_bytes: int
    gradient_bytes: int
    peak_bytes: int
    gradients: tuple[str, ...]
    parameter_order: tuple[str, ...]
    flops_by_module: Mapping[str, int]
    unpriced: tuple[str, ...]
    counted_on: str


@dataclass(frozen=True)
class FakeModel:
    """A model whose tensors are fake: they have device, dtype and shape but no values, so nothing is computed.

    Operators select the same kernels as on real tensors.
    Source: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html

    Attributes:
        model: the model.
        mode: torch's context manager in which operators work on fake tensors.
    """

    model: nn.Module
    mode: FakeTensorMode

    @classmethod
    def copy_of(cls, model: nn.Module) -> FakeModel:
        """Return a copy of a model, with fake tensors in place of its parameters and buffers, and without gradients.

        Hooks, `requires_grad` and tied parameters are as in the model.
        """
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # the model may use tensors that it keeps outside its modules
        fakes = {id(entry.tensor): mode.from_tensor(entry.tensor) for entry in tensor_entries(model).values()}
        for fake in fakes.values():
            fake.grad = None
        return cls(copy.deepcopy(model, fakes), mode)

    def count(self, task: Task, batch: Any) -> StepCount:
        """Return the FLOPs and memory of one forward and backward pass, without computing any values.

        `task`: a function (model, batch) -> loss. `batch`: a real batch, of which only the shapes and dtypes of the tensors
        are used. Raises an error if the forward pass needs the values of tensors, as `tensor.item()` does.
        """
        with preserve_random_state(), _without_fused_attention(), _without_log_of_fake_tensors(), self.mode:
            return _run_and_count(self.model, task, map_tensors(batch, self.mode.from_tensor), META)


def count_step(model: nn.Module | FakeModel, task: Task, batch: Any) -> StepCount:
    """Return the FLOPs and memory of one forward and backward pass, without changing the model or the random state.

    `task`: a function (model, batch) -> loss. The passes run on a copy of the model. It has fake tensors, so that nothing is
    computed, unless the model and the batch are small or the forward pass needs the values of tensors: then real ones.
    Source: https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py,
    https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks
    """
    if isinstance(model, FakeModel):
        return model.count(task, batch)
    if not (is_small(model) and sum(tensor.numel() for tensor in tensors_in(batch)) <= SMALL_BATCH):
        try:
            return FakeModel.copy_of(model).count(task, batch)
        except Exception:  # the forward pass may need values; any other error is raised again below
            pass
    with preserve_random_state(), _without_fused_attention():
        return _run_and_count(copy.deepcopy(model), task, map_tensors(batch, Tensor.clone), REAL)


def is_small(model: nn.Module) -> bool:
    """Return whether a model has so few elements that computing a step takes less time than fake tensors do."""
    return sum(entry.tensor.numel() for entry in tensor_entries(model).values()) <= SMALL_MODEL


def unfrozen_copy(model: nn.Module) -> nn.Module | FakeModel:
    """Return a copy of a model in which every parameter requires a gradient, for `count_step`.

    Its tensors have no values unless the model is small.
    """
    unfrozen = copy.deepcopy(model) if is_small(model) else FakeModel.copy_of(model)
    set_every_flag(unfrozen if isinstance(unfrozen, nn.Module) else unfrozen.model)
    return unfrozen


def set_every_flag(model: nn.Module) -> None:
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


def _run_and_count(model: nn.Module, task: Task, batch: Any, counted_on: str) -> StepCount:
    """Run forward and backward on the given model itself, not on a copy, and return their FLOPs and memory.

    `counted_on`: the constant META or REAL, for a fake or a real model and batch; only stored in the result.
    """
    model.zero_grad()
    parameters = dict(model.named_parameters())
    parameter_order: dict[str, None] = {}  # used as an ordered set
    tensors = [entry.tensor for entry in tensor_entries(model).values()]
    counter = OperatorCounter([*tensors, *tensors_in(batch)], parameters.values())

    def begin(name: str, module: nn.Module, *_: Any) -> None:
        counter.enter_module(name)
        prefix = f"{name}." if name else ""
        parameter_order.update(dict.fromkeys(prefix + key for key, _ in module.named_parameters(recurse=False)))

    with counter:
        with (
            tracing(model, begin, counter.leave_module),
            torch.autograd.graph.saved_tensors_hooks(counter.add_saved, lambda tensor: tensor),
        ):
            loss = task(model, batch)
        flops_forward = counter.flops
        if loss.requires_grad:
            loss.backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return StepCount(
        flops_forward=flops_forward,
        flops_backward=counter.flops - flops_forward,
        saved_bytes=counter.saved_bytes,
        gradient_bytes=sum(storage.nbytes() for storage in storages_in(gradients.values())),
        peak_bytes=counter.peak,
        gradients=tuple(gradients),
        parameter_order=tuple(parameter_order),
        flops_by_module=dict(counter.flops_by_module),
        unpriced=tuple(sorted(counter.unpriced)),
        counted_on=counted_on,
    )

"""Count the FLOPs and bytes of memory that one forward and backward pass take, on a copy of the model."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
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
MOST_COPIED = 2**22  # elements of a model that is copied with its values
QUICK_PRODUCTS = 2**20  # weights x elements of the batch, for each tensor: computing as many takes about a millisecond


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
        flops_again_by_module: the same of the forward passes that backward makes again, as activation checkpointing does.
        backward_through: the names of the modules whose output requires a gradient.
        unpriced: the names of operators that may multiply matrices, but whose FLOPs are not known and not contained.
        unmeasured: the names of operators that keep memory for backward which is not known (on fake tensors) nor contained.
        depends_on_values: whether values of tensors were read, so that another batch of these shapes may take other FLOPs.
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
    flops_again_by_module: Mapping[str, int]
    backward_through: tuple[str, ...]
    unpriced: tuple[str, ...]
    unmeasured: tuple[str, ...]
    depends_on_values: bool
    counted_on: str


@dataclass(frozen=True)
class ModelCopy:
    """A copy of a model to count steps on, which counting may change.

    Hooks, `requires_grad` and tied parameters are as in the model. The tensors may be fake: they have device, dtype and
    shape but no values, so that nothing is computed. Operators select the same kernels as on real tensors.
    Source: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html

    Attributes:
        model: the copy.
        mode: torch's context manager in which operators work on fake tensors, or None if the tensors are real.
    """

    model: nn.Module
    mode: FakeTensorMode | None = None

    @classmethod
    def without_values(cls, model: nn.Module) -> ModelCopy:
        """Return a copy of a model with fake tensors in place of its parameters and buffers.

        For tensors on the meta device, which have no values either, the fake ones are on the CPU.
        """
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # the model may use tensors that it keeps outside its modules
        fakes = {id(entry.tensor): _fake_of(entry.tensor, mode) for entry in tensor_entries(model).values()}
        for fake in fakes.values():
            fake.grad = None
        return cls(copy.deepcopy(model, fakes), mode)

    @classmethod
    def of(cls, model: nn.Module, *, may_have_values: bool = True) -> ModelCopy:
        """Return a copy of a model in train mode, as it is trained; with values if it may have them and is small."""
        with _without_garbage_collection():
            copied = cls(copy.deepcopy(model)) if may_have_values and is_small(model) else cls.without_values(model)
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
        entries = tensor_entries(self.model)
        real = {id(entry.tensor): _valued(entry.tensor, tensors[name]) for name, entry in entries.items()}
        return ModelCopy(copy.deepcopy(self.model, real))

    def count(self, task: Task, batch: Any) -> StepCount:
        """Return the FLOPs and memory of one forward and backward pass of this copy.

        `task`: a function (model, batch) -> loss. `batch`: a real batch, of which only the shapes and dtypes of the tensors
        are used if the copy has no values. Then an error is raised if the forward pass needs the values of tensors, as
        `tensor.item()` does.
        """
        with preserve_random_state(), _without_fused_attention(), _without_garbage_collection():
            if self.mode is None:
                return _run_and_count(self.model, task, map_tensors(batch, Tensor.clone), REAL)
            with _without_log_of_fake_tensors(), self.mode:
                return _run_and_count(self.model, task, map_tensors(batch, self.mode.from_tensor), META)


def count_step(model: nn.Module | ModelCopy, task: Task, batch: Any) -> StepCount:
    """Return the FLOPs and memory of one forward and backward pass, without changing the model or the random state.

    `task`: a function (model, batch) -> loss. The passes run on a copy of the model, or on `model` itself if it is one. The
    copy has fake tensors, so that nothing is computed, unless a step takes less time than that or needs values.
    Source: https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py,
    https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks
    """
    if isinstance(model, ModelCopy):
        if model.mode is not None or is_quick(model.model, batch):
            return model.count(task, batch)
        model = model.model
    if not is_quick(model, batch):
        try:
            return ModelCopy.without_values(model).count(task, batch)
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


def _fake_of(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Return a fake tensor like the given one; it is on the CPU if the given one is on the meta device."""
    if not tensor.is_meta:
        return mode.from_tensor(tensor)
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
def _without_garbage_collection() -> Iterator[None]:
    """Inside the `with` block, Python looks for no reference cycles: it takes long, and frees memory at any moment."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _without_log_of_fake_tensors() -> Iterator[None]:
    """Inside the `with` block, torch does not print the stack of an operator that cannot run on fake tensors."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


@dataclass
class _Calls:
    """What the calls of modules show; modules are called in forward, and again in backward if they are checkpointed.

    Attributes:
        counter: counts the operators in each module.
        parameter_order: the names of the parameters, as an ordered set, in the order in which their modules are called.
        through: the names of the modules whose output requires a gradient, as an ordered set.
    """

    counter: OperatorCounter
    parameter_order: dict[str, None] = field(default_factory=dict)
    through: dict[str, None] = field(default_factory=dict)

    def begin(self, name: str, module: nn.Module, *_: Any) -> None:
        """Called before the forward pass of a module."""
        self.counter.enter_module(name)
        prefix = f"{name}." if name else ""
        self.parameter_order.update(dict.fromkeys(prefix + key for key, _ in module.named_parameters(recurse=False)))

    def end(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Called after it, with None as the output if it has raised."""
        self.counter.leave_module()
        if any(tensor.requires_grad for tensor in tensors_in(output)):
            self.through[name] = None


def _run_and_count(model: nn.Module, task: Task, batch: Any, counted_on: str) -> StepCount:
    """Run forward and backward on the given model itself, not on a copy, and return their FLOPs and memory.

    `counted_on`: the constant META or REAL, for a fake or a real model and batch; only stored in the result.
    """
    model.zero_grad()
    parameters = dict(model.named_parameters())
    tensors = [entry.tensor for entry in tensor_entries(model).values()]
    calls = _Calls(counter := OperatorCounter([*tensors, *tensors_in(batch)], parameters.values()))
    with counter, tracing(model, calls.begin, calls.end, always_ends=True):  # checkpoints end passes with an exception
        with torch.autograd.graph.saved_tensors_hooks(counter.add_saved, lambda tensor: tensor):
            loss = task(model, batch)
        flops_forward, flops_by_module = counter.flops, dict(counter.flops_by_module)
        counter.flops_by_module.clear()
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
        parameter_order=tuple(calls.parameter_order),
        flops_by_module=flops_by_module,
        flops_again_by_module=dict(counter.flops_by_module),
        backward_through=tuple(calls.through),
        unpriced=tuple(sorted(counter.unpriced)),
        unmeasured=tuple(sorted(counter.unmeasured)) if counted_on == META else (),
        depends_on_values=counter.depends_on_values,
        counted_on=counted_on,
    )

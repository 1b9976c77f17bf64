"""What forward and backward compute and keep, counted on a copy of the model: FLOPs, saved bytes, live bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from runner.seeding import kept_random_state
from runner.tensors import each_tensor, entries, tensors_in
from runner.tracing import tracing

Task = Callable[[nn.Module, Any], Tensor]
META, REAL = "a meta copy", "a real batch"
ATTENTION: dict[str, Callable[..., int]] = {  # operators of aten that torch counts on other devices alone
    "_scaled_dot_product_flash_attention_for_cpu": lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


@dataclass(frozen=True)
class Count:
    """What forward and backward of one batch take.

    Attributes:
        flops_forward, flops_backward: floating-point operations of matrix products and convolutions, as torch counts them.
        saved_bytes: what autograd keeps for backward, each storage once, parameters left out (a view of one counts, such as
            the transposed weight of a linear layer).
        gradient_bytes, gradients: of the gradients that backward leaves on parameters; the names of those.
        peak_bytes: the most that lives at once of what forward and backward make, gradients included, without the scratch
            memory of kernels. What torch's profiler would sum up, without its half second and its lines on the terminal.
        order: the names of the parameters in the order in which the forward pass comes to their modules.
        by_module: floating-point operations of the forward pass of each module, by its name, those within it included.
        on: `a meta copy`, which computes nothing, or `a real batch`.
    """

    flops_forward: int
    flops_backward: int
    saved_bytes: int
    gradient_bytes: int
    peak_bytes: int
    gradients: tuple[str, ...]
    order: tuple[str, ...]
    by_module: Mapping[str, int]
    on: str


@dataclass(frozen=True)
class FakeCopy:
    """A copy of a model, hooks and flags included, whose tensors have a device and a shape, and no values; ties stay ties.

    Operators choose the kernel that they would on real ones, and make nothing.
    Source: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html
    """

    model: nn.Module
    mode: FakeTensorMode

    @classmethod
    def copy_of(cls, model: nn.Module) -> FakeCopy:
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # which a cache of the user's may hold
        fakes = {id(entry.tensor): mode.from_tensor(entry.tensor) for entry in entries(model).values()}
        for fake in fakes.values():
            fake.grad = None
        return cls(copy.deepcopy(model, fakes), mode)

    def count(self, task: Task, batch: Any) -> Count:
        """Count one step on a batch of this one's shapes."""
        with kept_random_state(), _plain_attention(), self.mode:
            return _counted(self.model, task, each_tensor(batch, self.mode.from_tensor), META)


def count(model: nn.Module, task: Task, batch: Any) -> Count:
    """Count one step of this model on this batch; the model, its gradients and the random state stay as they are.

    On a copy without values where the model allows, else on a copy and the real batch, which takes its time and memory.
    Source: https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py,
    https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks
    """
    try:
        return FakeCopy.copy_of(model).count(task, batch)
    except Exception:  # a forward pass that needs values; the same on real ones tells what is really wrong
        with kept_random_state(), _plain_attention():
            twin = copy.deepcopy(model)
            twin.zero_grad()
            return _counted(twin, task, each_tensor(batch, Tensor.clone), REAL)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without torch's fused transformer layer in eval mode, whose products nobody counts."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _formulas(aten: Any) -> dict[Any, Callable[..., int]]:
    """The formulas of those operators that this torch has: it may rename them, for their names are private."""
    found = {getattr(aten, name, None): formula for name, formula in ATTENTION.items()}
    return {operator: formula for operator, formula in found.items() if operator is not None}


class _Live(TorchDispatchMode):
    """Adds up the storages that operators make, for as long as each lives; not those that are there before."""

    def __init__(self, there: Any) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: WeakSet[torch.UntypedStorage] = WeakSet(storages_in(there))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in storages_in(made):
            if storage not in self.known:
                self.known.add(storage)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                finalize(storage, self.gone, storage.nbytes()).atexit = False
        return made

    def gone(self, size: int) -> None:
        self.bytes -= size


def storages_in(value: Any) -> Iterator[torch.UntypedStorage]:
    """The storage of every tensor in nested dicts, lists and tuples; of a sparse one those of its indices and values."""
    for tensor in tensors_in(value):
        if tensor.layout is torch.sparse_coo:
            yield from (tensor._indices().untyped_storage(), tensor._values().untyped_storage())
        elif tensor.layout is torch.strided:
            yield tensor.untyped_storage()


def _counted(model: nn.Module, task: Task, batch: Any, on: str) -> Count:
    parameters = dict(model.named_parameters())
    own = {id(parameter) for parameter in parameters.values()}
    saved: WeakSet[torch.UntypedStorage] = WeakSet()  # weak, for what is held here would seem to live longer
    sizes: list[int] = []
    order: dict[str, None] = {}

    def keep(tensor: Tensor) -> Tensor:
        for storage in storages_in(tensor) if id(tensor) not in own else ():
            if storage not in saved:
                saved.add(storage)
                sizes.append(storage.nbytes())
        return tensor

    def reach(name: str, module: nn.Module, *_: Any) -> None:
        prefix = f"{name}." if name else ""
        order.update(dict.fromkeys(prefix + own_name for own_name, _ in module.named_parameters(recurse=False)))

    there = [entry.tensor for entry in entries(model).values()]
    formulas = _formulas(torch.ops.aten)
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, _Live([there, batch]) as live:
        with tracing(model, reach), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = task(model, batch)
        forward = counter.get_total_flops()
        by_module = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        if loss.requires_grad:
            loss.backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return Count(
        flops_forward=forward,
        flops_backward=counter.get_total_flops() - forward,
        saved_bytes=sum(sizes),
        gradient_bytes=sum(storage.nbytes() for storage in storages_in(gradients)),
        peak_bytes=live.peak,
        gradients=tuple(gradients),
        order=tuple(order),
        by_module=by_module,
        on=on,
    )

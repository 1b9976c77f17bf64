"""Skip the frozen first layers (the prefix) in a forward pass.

The modules of the prefix return placeholders instead of running, and the last of these modules (the boundary) returns its
stored output. For this, `forward` is replaced on a few module instances until `Bypass.undo` is called. Forward hooks are not
used, because they turn off the fast path of transformers in eval mode.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import SkippedError
from runner.methods.base import Example
from runner.seeding import preserve_random_state
from runner.tensors import map_tensors, tensors_in
from runner.tracing import tracing


class BoundaryReachedError(Exception):
    """Raised to end a forward pass when the last frozen module has returned. `output`: what that module returned."""

    def __init__(self, output: Any) -> None:
        super().__init__("the end of the frozen prefix")
        self.output = output


@dataclass
class Recording:
    """What the frozen first layers returned in one forward pass, with a placeholder of the same shape for each tensor.

    `outputs`: {module name: its outputs with placeholders, in the order of its calls}, for the modules that a replay skips.
    `last`: the output of the last frozen module with a placeholder for its only tensor, which is stored elsewhere.
    `dim_order`: the order of the dimensions of that tensor in memory, which the stored rows have.
    """

    outputs: dict[str, list[Any]] = field(default_factory=dict)
    last: Any = None
    dim_order: Sequence[int] = ()

    @property
    def last_tensor(self) -> Tensor:
        """The placeholder for the only tensor in the output of the last frozen module."""
        (tensor,) = tensors_in(self.last)
        return tensor

    def map(self, placeholder: Callable[[Tensor], Tensor]) -> Recording:
        """Return a copy of the recording in which each tensor is replaced by `placeholder(tensor)`."""
        outputs = {name: map_tensors(outputs, placeholder) for name, outputs in self.outputs.items()}
        return replace(self, outputs=outputs)


def meta_placeholder(tensor: Tensor) -> Tensor:
    """Return a tensor without values, on the meta device, with the shape, strides and dtype of `tensor`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def filled_placeholder(value: float, tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the same shape and dtype as `tensor` on `device`, filled with `value`.

    A tensor of an integer or bool dtype is filled with 1 if `value` is above 0, otherwise with 0. Used for models that fail
    on tensors of the meta device, for example because the model combines them with tensors on `device`.
    """
    has_reals = tensor.is_floating_point() or tensor.is_complex()
    return torch.full_like(tensor, value if has_reals else int(value > 0), device=device)


class Bypass:
    """Lets a model record the outputs of its frozen first layers (the prefix), or run without these layers.

    `boundary`: name of the last frozen module. `prefix_modules`: the names that `find_prefix_modules` returns. `forward` is
    replaced on the model and on these modules. The replacements have an effect only within a `with` block of `record` or
    `replay`; elsewhere every module runs as usual. The model may be called in any way.

    `beneath`: if another Bypass has replaced `forward`, replace what that one calls, so that it notices nothing of this one.
    """

    def __init__(self, model: nn.Module, boundary: str, prefix_modules: Sequence[str], *, beneath: bool = False) -> None:
        self.boundary = boundary
        self.active = False  # True within a block of `record` or `replay`
        self.calls = 0  # of the model, within the block
        self.past_boundary = True  # from here on every module runs as usual
        self.inside_module = False  # within a replaced module, which may call another replaced one
        self.recording: Recording | None = None  # the one that is replayed
        self.position: Counter[str] = Counter()  # {module name: how often it was called in this call of the model}
        self.on_output: Callable[[str, Any], None] = lambda name, output: None
        self.load_output: Callable[[], Tensor] = lambda: torch.empty(0)
        names = dict.fromkeys(["", *prefix_modules, boundary])
        self.replaced = [ReplacedForward(self, name, model.get_submodule(name), beneath) for name in names]

    @contextmanager
    def record(self, on_output: Callable[[str, Any], None]) -> Iterator[Bypass]:
        """In the `with` block, report the outputs of the frozen first layers at each call of the model.

        The layers run as usual. `on_output(module_name, output)` is called after each outermost frozen module, that is, one
        that no other frozen module calls. The last call is for the last frozen module.
        """
        self.on_output, self.recording = on_output, None
        with self._active():
            yield self

    @contextmanager
    def replay(self, recording: Recording, load_output: Callable[[], Tensor]) -> Iterator[Bypass]:
        """In the `with` block, the model does not run the modules of the recording and the last frozen module.

        The last frozen module returns what it did when it was recorded, with `load_output()` as its tensor. The others
        return their placeholders from `recording`. The model raises SkippedError if it calls one of them more often than
        when it was recorded.
        """
        self.recording, self.load_output = recording, load_output
        with self._active():
            yield self

    @contextmanager
    def _active(self) -> Iterator[None]:
        """In the `with` block, let the replaced `forward` methods record or replay."""
        self.active, self.calls = True, 0
        try:
            yield
        finally:
            self.active, self.recording, self.past_boundary, self.inside_module = False, None, True, False

    def begin_forward(self) -> None:
        """Begin a call of the model, before its first module runs."""
        self.calls += 1
        self.past_boundary, self.inside_module, self.position = False, False, Counter()

    def call_module(self, name: str, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the output of the module `name`; `forward` is the original `forward` of that module.

        In a replay, the last frozen module returns its stored output, and those in the recording their placeholders, without
        running. In all other cases the result is `forward(*args, **kwargs)`. While recording, `on_output` is called with
        the name and output of each frozen module.
        """
        if self.past_boundary or self.inside_module:
            return forward(*args, **kwargs)
        if self.recording is not None and name == self.boundary:
            self.past_boundary = True
            output = self.load_output()
            return map_tensors(self.recording.last, lambda placeholder: output)
        if self.recording is not None and name in self.recording.outputs:
            return self._recorded_output(name, self.recording.outputs[name])
        self.inside_module = True
        output = forward(*args, **kwargs)
        self.inside_module, self.past_boundary = False, name == self.boundary
        if self.recording is None:
            self.on_output(name, output)
        return output

    def _recorded_output(self, name: str, outputs: Sequence[Any]) -> Any:
        """Return the placeholders for the next output of a frozen module. Raises SkippedError if it has returned all."""
        self.position[name] += 1
        if self.position[name] > len(outputs):
            raise SkippedError(f"{name} is called more often for one batch than for another: its output cannot be reused")
        # new tensors, whose shape the model may change in place
        return map_tensors(outputs[self.position[name] - 1], Tensor.detach)

    def undo(self) -> None:
        """Give every module its original `forward` back."""
        for replaced in self.replaced:
            replaced.undo()


class ReplacedForward:
    """Stands in for `forward` on one module instance and passes each call to a Bypass, which may skip the module.

    `name`: the module's name in the model. A deep copy of the module gets the original `forward`, not this object.
    `beneath`: stand in for what another such object on the module calls.
    """

    def __init__(self, bypass: Bypass, name: str, module: nn.Module, beneath: bool = False) -> None:
        self.bypass, self.name, self.module = bypass, name, module
        present = vars(module).get("forward")  # None if the instance used the `forward` of its class
        self.outer = present if beneath and isinstance(present, ReplacedForward) else None
        self.instance_forward: Any
        self.forward: Callable[..., Any]
        if self.outer:
            self.instance_forward = self.outer.instance_forward
            self.forward = self.__wrapped__ = self.outer.forward
            self.outer.forward = self
        else:
            self.instance_forward = present
            self.forward = self.__wrapped__ = module.forward  # `inspect.signature` reads that of `__wrapped__`
            vars(module)["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bypass = self.bypass
        if self.name == "" and bypass.active:
            bypass.begin_forward()
        if not bypass.active or (self.name == "" and bypass.boundary != ""):
            return self.forward(*args, **kwargs)
        return bypass.call_module(self.name, self.forward, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.instance_forward is not None:
            return copy.deepcopy(self.instance_forward, memo)
        copied = copy.deepcopy(self.module, memo)
        return type(copied).forward.__get__(copied)

    def undo(self) -> None:
        """Give the module, or the object that calls this one, its original `forward` back."""
        if self.outer:
            self.outer.forward = self.forward
            return
        vars(self.module).pop("forward", None)
        if self.instance_forward is not None:
            vars(self.module)["forward"] = self.instance_forward


@contextmanager
def original_forward(model: nn.Module) -> Iterator[None]:
    """Within the `with` block, no module of the model has a `forward` that a Bypass has replaced."""
    replaced = {}
    for module in model.modules():
        if isinstance(present := vars(module).get("forward"), ReplacedForward):
            replaced[module] = vars(module).pop("forward")
            if present.instance_forward is not None:
                vars(module)["forward"] = present.instance_forward
    try:
        yield
    finally:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward


@torch.no_grad()
def find_prefix_modules(model: nn.Module, boundary: str, example: Example) -> list[str]:
    """Return the names of the outermost modules that a forward pass calls until the module `boundary` has finished.

    Outermost means that no other module in the list calls them. `boundary` and the modules that contain it are not listed,
    but the modules directly inside them are, if they are called before `boundary` has finished. `model` and `example`: those
    that `trial_copy` returns. The random state does not change.
    """
    parts = boundary.split(".")
    containers = {".".join(parts[:count]) for count in range(len(parts) + 1)}
    found: list[str] = []
    open_calls: list[str] = []

    def begin(name: str, *_: Any) -> None:
        if name not in containers and not open_calls:
            found.append(name)
        if name not in containers:
            open_calls.append(name)

    def end(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if name == boundary:
            raise BoundaryReachedError(output)
        if name not in containers:
            open_calls.pop()

    with preserve_random_state(), tracing(model, begin, end), suppress(BoundaryReachedError):
        example.loss(model)
    return list(dict.fromkeys(found))

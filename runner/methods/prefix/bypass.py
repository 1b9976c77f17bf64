"""Skip the frozen prefix in a forward pass: its modules return placeholders, and its boundary returns stored outputs.

The `forward` of a few module instances is replaced until `Bypass.undo` is called. Hooks are not used, because they turn off
the fast path of transformers in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runner.tensors import map_tensors
from runner.tracing import tracing


class BoundaryReachedError(Exception):
    """Raised to end a forward pass at the boundary. `output`: the boundary's output."""

    def __init__(self, output: Any) -> None:
        super().__init__("the end of the frozen prefix")
        self.output = output


class ChangedInputError(Exception):
    """The model was not called with exactly the samples of the batch."""


@dataclass
class Recording:
    """The outputs of the prefix's modules in one forward pass, with placeholders of the same shapes instead of tensors.

    `x`: a placeholder for the model's input. `outputs`: (module name, output) in the order in which the modules ended,
    without the boundary.
    """

    x: Tensor
    outputs: list[tuple[str, Any]] = field(default_factory=list)


def meta_placeholder(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape, strides and dtype on the meta device, which fails if its values are used."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def filled_placeholder(value: float, tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the same shape and dtype on `device`, filled with one value.

    For models that combine the prefix's outputs with tensors of their own, where meta tensors fail. Integers and booleans
    are 1 if `value` is above 0, otherwise 0.
    """
    has_reals = tensor.is_floating_point() or tensor.is_complex()
    return torch.full_like(tensor, value if has_reals else int(value > 0), device=device)


class Bypass:
    """Replaces `forward` of the model, of the prefix's outermost modules and of the boundary, to record or skip the prefix.

    Outside `record` and `replay`, every module runs as usual. They apply only to calls `model(x)` with the tensor x that
    they were given, unchanged since then: another call is not recorded, and raises ChangedInputError in a replay.
    """

    def __init__(self, model: nn.Module, boundary: str, prefix_modules: Sequence[str]) -> None:
        self.boundary = boundary
        self.x: Tensor | None = None  # None outside `record` and `replay`
        self.x_version = 0  # to notice that x was written to
        self.past_boundary = True  # from here on every module runs as usual
        self.inside_module = False  # within a replaced module, which may call another replaced one
        self.recording: Recording | None = None  # the one that is replayed
        self.position = 0  # in the outputs of the recording
        self.on_output: Callable[[str, Any], None] = lambda name, output: None
        self.load_output: Callable[[], Tensor] = lambda: torch.empty(0)
        names = dict.fromkeys(["", *prefix_modules, boundary])
        self.replaced = [ReplacedForward(self, name, model.get_submodule(name)) for name in names]

    @contextmanager
    def record(self, x: Tensor, on_output: Callable[[str, Any], None]) -> Iterator[None]:
        """Inside the block, a call `model(x)` with exactly this `x` also reports the outputs of the frozen first layers.

        `on_output(module_name, output)` is called after each outermost frozen module, and after the boundary, the last one.
        """
        with self._expect_input(x):
            self.on_output = on_output
            yield

    @contextmanager
    def replay(self, recording: Recording, load_output: Callable[[], Tensor]) -> Iterator[None]:
        """Inside the block, a call `model(x)` does not run the frozen first layers.

        They return placeholders from the recording, and the last of them, the boundary, returns `load_output()`.
        """
        with self._expect_input(recording.x):
            self.recording, self.load_output = recording, load_output
            yield

    @contextmanager
    def _expect_input(self, x: Tensor) -> Iterator[None]:
        self.x, self.x_version = x, x._version
        try:
            yield
        finally:
            self.x, self.recording, self.past_boundary, self.inside_module = None, None, True, False

    def begin_forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Begin a call of the model: check its input and start at the first module of the prefix."""
        assert self.x is not None
        as_expected = not kwargs and len(args) == 1 and args[0] is self.x and self.x._version == self.x_version
        if not as_expected and self.recording is not None:
            raise ChangedInputError("the task does not pass the samples of the batch to the model unchanged")
        self.past_boundary, self.inside_module, self.position = not as_expected, False, 0

    def call_module(self, name: str, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the output of a replaced module: its own `forward`, or in a replay what stands for its output."""
        if self.past_boundary or self.inside_module:
            return forward(*args, **kwargs)
        if self.recording is None:
            self.inside_module = True
            output = forward(*args, **kwargs)
            self.inside_module, self.past_boundary = False, name == self.boundary
            self.on_output(name, output)
            return output
        if name == self.boundary:
            self.past_boundary = True
            return self.load_output()
        expected, output = self.recording.outputs[self.position]
        assert expected == name, f"{name} was called, but {expected} when the prefix was recorded"
        self.position += 1
        return map_tensors(output, Tensor.detach)  # new tensors, whose shape the model may change in place

    def undo(self) -> None:
        """Restore every `forward`."""
        for replaced in self.replaced:
            replaced.undo()


class ReplacedForward:
    """Replaces `forward` on one module instance; a deep copy of the module has the original `forward`."""

    def __init__(self, bypass: Bypass, name: str, module: nn.Module) -> None:
        self.bypass, self.name, self.module = bypass, name, module
        self.instance_forward = vars(module).get("forward")  # None if the instance used the `forward` of its class
        self.forward = module.forward
        vars(module)["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bypass = self.bypass
        if self.name == "" and bypass.x is not None:
            bypass.begin_forward(args, kwargs)
        if bypass.x is None or (self.name == "" and bypass.boundary != ""):
            return self.forward(*args, **kwargs)
        return bypass.call_module(self.name, self.forward, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.instance_forward is not None:
            return copy.deepcopy(self.instance_forward, memo)
        copied = copy.deepcopy(self.module, memo)
        return type(copied).forward.__get__(copied)

    def undo(self) -> None:
        """Restore the original `forward`."""
        vars(self.module).pop("forward", None)
        if self.instance_forward is not None:
            vars(self.module)["forward"] = self.instance_forward


@torch.random.fork_rng()  # the forward pass may use random numbers
@torch.no_grad()
def find_prefix_modules(model: nn.Module, boundary: str, sample: Tensor) -> list[str]:
    """Return the names of the outermost modules that a forward pass calls before the boundary ends.

    Modules that contain the boundary are not among them, because they run in every step. Found on a copy of the model; the
    random state does not change.
    """
    copied = copy.deepcopy(model).eval()
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

    with tracing(copied, begin, end), suppress(BoundaryReachedError):
        copied(sample)
    return list(dict.fromkeys(found))

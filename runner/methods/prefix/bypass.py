"""Skip the frozen first layers (the prefix) in a forward pass.

Their modules return placeholders instead of running, and the last of them (the boundary) returns stored outputs. For this,
`forward` is replaced on a few module instances until `Bypass.undo` is called. Hooks are not used, because they turn off the
fast path of transformers in eval mode.
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
    """Raised to end a forward pass after the last frozen module (the boundary). `output`: what that module returned."""

    def __init__(self, output: Any) -> None:
        super().__init__("the end of the frozen prefix")
        self.output = output


class ChangedInputError(Exception):
    """The model was called with something else than the samples of the batch, or these were written to before the call."""


@dataclass
class Recording:
    """What the frozen first layers returned in one forward pass, with a placeholder of the same shape for each tensor.

    `x`: a placeholder for the model's input. `outputs`: a list of (module name, output), in the order in which the modules
    finished; the last module, whose real outputs are stored elsewhere, is not in it.
    """

    x: Tensor
    outputs: list[tuple[str, Any]] = field(default_factory=list)


def meta_placeholder(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape, strides and dtype on the meta device: it has no values, so reading them fails."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def filled_placeholder(value: float, tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the same shape and dtype as `tensor` on `device`, filled with `value`.

    If the dtype is integer or bool, it is filled with 1 for a value above 0, otherwise with 0. Used where a tensor on the
    meta device fails, because the model combines it with tensors on `device`.
    """
    has_reals = tensor.is_floating_point() or tensor.is_complex()
    return torch.full_like(tensor, value if has_reals else int(value > 0), device=device)


class Bypass:
    """Lets a model record the outputs of its frozen first layers (the prefix), or run without these layers.

    Replaces `forward` of the model, of the modules `prefix_modules`, and of `boundary`, the last frozen module. Every module
    runs as usual except in a `with` block of `record` or `replay`, and there in a call `model(x)` with the expected tensor
    x. If x was written to or the call has other arguments, nothing is recorded, and a replay raises ChangedInputError.
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
        """In the `with` block, a call `model(x)` also reports the outputs of the frozen first layers, which run as usual.

        `on_output(module_name, output)` is called after each outermost frozen module; the last call is for the module at
        which the frozen layers end. A call with another tensor than this `x` reports nothing.
        """
        with self._expect_input(x):
            self.on_output = on_output
            yield

    @contextmanager
    def replay(self, recording: Recording, load_output: Callable[[], Tensor]) -> Iterator[None]:
        """In the `with` block, a call `model(recording.x)` does not run the frozen first layers.

        They return the placeholders in `recording`, except the last of them, which returns `load_output()`. A call with
        anything else than `recording.x` raises ChangedInputError.
        """
        with self._expect_input(recording.x):
            self.recording, self.load_output = recording, load_output
            yield

    @contextmanager
    def _expect_input(self, x: Tensor) -> Iterator[None]:
        """In the `with` block, the replaced `forward` methods record or replay a call of the model with this tensor."""
        self.x, self.x_version = x, x._version
        try:
            yield
        finally:
            self.x, self.recording, self.past_boundary, self.inside_module = None, None, True, False

    def begin_forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Check the input of a call of the model, before its first module runs.

        `args`, `kwargs`: what the model was called with. If they are not the expected tensor alone, or it was written to,
        the frozen modules run as usual in this call; in a replay ChangedInputError is raised.
        """
        assert self.x is not None
        as_expected = not kwargs and len(args) == 1 and args[0] is self.x and self.x._version == self.x_version
        if not as_expected and self.recording is not None:
            raise ChangedInputError("the task does not pass the samples of the batch to the model unchanged")
        self.past_boundary, self.inside_module, self.position = not as_expected, False, 0

    def call_module(self, name: str, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the output of the module `name`, whose own `forward` is given.

        In a replay, a frozen module does not run: its placeholder is returned or, for the last frozen module, the stored
        output. Otherwise `forward(*args, **kwargs)` runs; while recording, `on_output` gets what a frozen module returns.
        """
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
        """Give every module its original `forward` back."""
        for replaced in self.replaced:
            replaced.undo()


class ReplacedForward:
    """Stands in for `forward` on one module instance and passes each call to a Bypass, which may skip the module.

    `name`: the module's name in the model. A deep copy of the module has the original `forward`.
    """

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
        """Give the module its original `forward` back."""
        vars(self.module).pop("forward", None)
        if self.instance_forward is not None:
            vars(self.module)["forward"] = self.instance_forward


@torch.random.fork_rng()  # the forward pass may use random numbers
@torch.no_grad()
def find_prefix_modules(model: nn.Module, boundary: str, sample: Tensor) -> list[str]:
    """Return the names of the outermost modules that a forward pass calls until the module `boundary` has finished.

    `boundary` and the modules that contain it are left out; the outermost modules inside them are listed instead. The
    forward pass of `sample` runs on a copy of the model; the random state does not change.
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

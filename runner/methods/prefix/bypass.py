"""Skip the frozen first layers (the prefix) in a forward pass.

The modules of the prefix return placeholders instead of running, and the last of these modules (the boundary) returns its
stored output. For this, `forward` is replaced on a few module instances until `Bypass.undo` is called. Forward hooks are not
used, because they turn off the fast path of transformers in eval mode.
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
    """Raised to end a forward pass when the last frozen module has returned. `output`: what that module returned."""

    def __init__(self, output: Any) -> None:
        super().__init__("the end of the frozen prefix")
        self.output = output


class ChangedInputError(Exception):
    """The model was not called with the batch's sample tensor alone, or that tensor was written to before the call."""


@dataclass
class Recording:
    """What the frozen first layers returned in one forward pass, with a placeholder of the same shape for each tensor.

    `x`: a placeholder for the model's input. `outputs`: a list of (module name, the module's output with placeholders), in
    the order in which the modules finished. The last frozen module is not in the list, because its real outputs are stored
    elsewhere.
    """

    x: Tensor
    outputs: list[tuple[str, Any]] = field(default_factory=list)


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
    `replay`; elsewhere every module runs as usual. Both expect the call `model(x)` with one given tensor x that nothing has
    written to. For any other call, `record` records nothing, and `replay` raises ChangedInputError.
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
        """In the `with` block, report the outputs of the frozen first layers during a call `model(x)`.

        The layers run as usual. `on_output(module_name, output)` is called after each outermost frozen module, that is, one
        that no other frozen module calls. The last call is for the last frozen module. If the model is called with anything
        but `x`, nothing is reported.
        """
        with self._expect_input(x):
            self.on_output = on_output
            yield

    @contextmanager
    def replay(self, recording: Recording, load_output: Callable[[], Tensor]) -> Iterator[None]:
        """In the `with` block, a call `model(recording.x)` does not run the frozen first layers.

        The last frozen module returns `load_output()`; the others return their placeholders from `recording`. A call of the
        model with anything but `recording.x` raises ChangedInputError.
        """
        with self._expect_input(recording.x):
            self.recording, self.load_output = recording, load_output
            yield

    @contextmanager
    def _expect_input(self, x: Tensor) -> Iterator[None]:
        """In the `with` block, let the replaced `forward` methods record or replay when the model is called with `x`."""
        self.x, self.x_version = x, x._version
        try:
            yield
        finally:
            self.x, self.recording, self.past_boundary, self.inside_module = None, None, True, False

    def begin_forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Check the input of a call of the model, before the model's first module runs.

        `args`, `kwargs`: the arguments of the call. The expected input is a single tensor, the `x` of `record` or `replay`,
        unchanged since then. With any other input, a replay raises ChangedInputError; otherwise all modules run as usual in
        this call, and nothing is recorded.
        """
        assert self.x is not None
        as_expected = not kwargs and len(args) == 1 and args[0] is self.x and self.x._version == self.x_version
        if not as_expected and self.recording is not None:
            raise ChangedInputError("the task does not pass the samples of the batch to the model unchanged")
        self.past_boundary, self.inside_module, self.position = not as_expected, False, 0

    def call_module(self, name: str, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the output of the module `name`; `forward` is the original `forward` of that module.

        In a replay, a frozen module does not run: the last frozen module returns its stored output, and any other returns
        its placeholder. In all other cases the result is `forward(*args, **kwargs)`. While recording, `on_output` is called
        with the name and output of each frozen module.
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

    `name`: the module's name in the model. A deep copy of the module gets the original `forward`, not this object.
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

    Outermost means that no other module in the list calls them. `boundary` and the modules that contain it are not listed,
    but the modules directly inside them are, if they are called before `boundary` has finished. The forward pass of `sample`
    runs on a copy of the model in eval mode. The random state does not change.
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

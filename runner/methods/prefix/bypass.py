"""A model whose frozen prefix can be left out of a forward pass: its modules give placeholders, and its end what is given.

The `forward` of a few modules is replaced, on the instances, for as long as the splice stands. These are not hooks, whose
presence turns off the fast path of a transformer in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runner.tensors import each_tensor
from runner.tracing import tracing


class PrefixEndedError(Exception):
    """The end of the prefix, where a forward pass was to stop. `output`: what it gave."""

    def __init__(self, output: Any) -> None:
        super().__init__("the end of the frozen prefix")
        self.output = output


class OtherInputError(Exception):
    """The model was called with something else than the batch's samples."""


@dataclass
class Recording:
    """What the modules of a prefix gave in one forward pass, in turn, as stand-ins of the same shapes; and that for x."""

    x: Tensor
    outputs: list[tuple[str, Any]] = field(default_factory=list)


def on_meta(tensor: Tensor) -> Tensor:
    """A stand-in that costs nothing and fails where it is looked at, or where it meets a tensor that has values."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def full_of(value: float, tensor: Tensor, device: torch.device) -> Tensor:
    """A stand-in for models that add tensors of their own; in integers it holds 0, or 1 where the value is above 0."""
    has_reals = tensor.is_floating_point() or tensor.is_complex()
    return torch.full_like(tensor, value if has_reals else int(value > 0), device=device)


class Bypass:
    """Replaces `forward` of the model, of the module at the prefix's `end`, and of those `within`, the outermost before it.

    Until a pass is recorded or played, everything runs as it is. A call of the model with anything else than the one tensor
    x that was told, untouched, is not recorded, and raises OtherInputError where it would be played.
    """

    def __init__(self, model: nn.Module, end: str, within: Sequence[str]) -> None:
        self.end = end
        self.x: Tensor | None = None
        self.version = 0  # of x: a task may write to it
        self.beyond = True  # behind the prefix's end, where every module runs as it is
        self.inside = False  # a module of the prefix, which may call another of those that are replaced
        self.script: Recording | None = None
        self.at = 0
        self.told: Callable[[str, Any], None] = lambda name, output: None
        self.give: Callable[[], Tensor] = lambda: torch.empty(0)
        self.stubs = [ReplacedForward(self, name, model.get_submodule(name)) for name in dict.fromkeys(["", *within, end])]

    @contextmanager
    def recording(self, x: Tensor, told: Callable[[str, Any], None]) -> Iterator[None]:
        """Run the prefix, and tell the name and the output of each of its modules in turn, its end the last."""
        with self._knowing(x):
            self.told = told
            yield

    @contextmanager
    def playing(self, script: Recording, give: Callable[[], Tensor]) -> Iterator[None]:
        """Leave out the prefix: its modules give what the script has, and its end what `give` gives."""
        with self._knowing(script.x):
            self.script, self.give = script, give
            yield

    @contextmanager
    def _knowing(self, x: Tensor) -> Iterator[None]:
        self.x, self.version = x, x._version
        try:
            yield
        finally:
            self.x, self.script, self.beyond, self.inside = None, None, True, False

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A call of the model."""
        assert self.x is not None
        told = not kwargs and len(args) == 1 and args[0] is self.x and self.x._version == self.version
        if not told and self.script is not None:
            raise OtherInputError("the task gives the model something else than the samples of the batch as they are")
        self.beyond, self.inside, self.at = not told, False, 0

    def through(self, name: str, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One call of a module that is replaced."""
        if self.beyond or self.inside:
            return forward(*args, **kwargs)
        if self.script is None:
            self.inside = True
            output = forward(*args, **kwargs)
            self.inside, self.beyond = False, name == self.end
            self.told(name, output)
            return output
        if name == self.end:
            self.beyond = True
            return self.give()
        expected, output = self.script.outputs[self.at]
        assert expected == name, f"{name} was called where {expected} was when the prefix ran"
        self.at += 1
        return each_tensor(output, Tensor.detach)  # whose shape may be changed in place

    def undo(self) -> None:
        """Put every `forward` back."""
        for stub in self.stubs:
            stub.undo()


class ReplacedForward:
    """Stands as `forward` on one module; a copy of the model has the module's own."""

    def __init__(self, splice: Bypass, name: str, module: nn.Module) -> None:
        self.splice, self.name, self.module = splice, name, module
        self.own = vars(module).get("forward")
        self.forward = module.forward
        vars(module)["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        splice = self.splice
        if self.name == "" and splice.x is not None:
            splice.begin(args, kwargs)
        if splice.x is None or (self.name == "" and splice.end != ""):
            return self.forward(*args, **kwargs)
        return splice.through(self.name, self.forward, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.own is not None:
            return copy.deepcopy(self.own, memo)
        copied = copy.deepcopy(self.module, memo)
        return type(copied).forward.__get__(copied)

    def undo(self) -> None:
        vars(self.module).pop("forward", None)
        if self.own is not None:
            vars(self.module)["forward"] = self.own


@torch.random.fork_rng()  # a forward pass may draw
@torch.no_grad()
def outermost(model: nn.Module, end: str, sample: Tensor) -> list[str]:
    """The names of the modules that a forward pass calls before the one at `end` ends, and that no other of them calls.

    Those that contain `end` run, and are not among them. Found on a copy of the model, whose random state stays as it is.
    """
    twin = copy.deepcopy(model).eval()
    parts = end.split(".")
    around = {".".join(parts[:count]) for count in range(len(parts) + 1)}
    found: list[str] = []
    inside: list[str] = []

    def begin(name: str, *_: Any) -> None:
        if name not in around and not inside:
            found.append(name)
        if name not in around:
            inside.append(name)

    def finish(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if name == end:
            raise PrefixEndedError(output)
        if name not in around:
            inside.pop()

    with tracing(twin, begin, finish), suppress(PrefixEndedError):
        twin(sample)
    return list(dict.fromkeys(found))

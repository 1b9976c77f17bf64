"""The frozen prefix of a model: the module behind which no frozen parameter is reached any more."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.tracing import tracing


@torch.random.fork_rng()  # a forward pass may draw
def frozen_prefix(model: nn.Module, selection: Selection, input: Sequence[int]) -> tuple[str | None, str]:
    """The name of the module whose single output is all that crosses from the frozen prefix to the rest.

    `input` is the shape of one sample. Found on a copy of the model, in eval mode: hooks note the order in which
    modules end, and each that ended before the first trainable one began is tried as the cut, the latest first; it is one
    if no frozen parameter gets a gradient past it and every trainable one that had a gradient still does. Gives
    (None, reason) where there is none, or no copy can be made. The model and its random state stay as they are.
    """
    names = [name for name, parameter in model.named_parameters() if parameter in selection]
    try:
        twin = copy.deepcopy(model).eval()
    except RuntimeError as error:  # a tensor that is computed and kept as an attribute, as the old weight_norm does
        return None, f"the model cannot be copied to look for its frozen prefix: {error}"
    parameters = dict(twin.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in names)
    sample = torch.zeros(2, *input, device=next(twin.parameters()).device)
    wanted = _reached(twin, sample)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for name in reversed(_ended_before_the_rest(twin, sample, {parameters[name] for name in names})):
        handle = twin.get_submodule(name).register_forward_hook(_cut)
        reached = _reached(twin, sample)
        handle.remove()
        if reached == wanted:
            return name, ""
    return None, f"{names[0]} is frozen, but no single module's output parts what is frozen from what trains"


def _cut(module: nn.Module, args: Any, output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else output


def _reached(model: nn.Module, sample: Tensor) -> set[str]:
    """The names of the parameters that a gradient of the output reaches."""
    output = model(sample)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not isinstance(output, Tensor) or not output.requires_grad or not named:
        return set()
    found = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


def _ended_before_the_rest(model: nn.Module, sample: Tensor, frozen: set[nn.Parameter]) -> list[str]:
    """The modules, called once, that gave one tensor behind all frozen modules and before any trainable one was called."""
    ended: list[str] = []
    begun: list[str] = []

    def begin(name: str, module: nn.Module, *_: Any) -> None:
        own = list(module.parameters(recurse=False))
        if any(parameter not in frozen for parameter in own):
            begun.append(name)
        elif own:
            ended.clear()  # what ended before another frozen module cannot be behind all of them

    def end(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not begun and isinstance(output, Tensor):
            ended.append(name)

    with tracing(model, begin, end):
        model(sample)
    return [name for name in ended if ended.count(name) == 1]

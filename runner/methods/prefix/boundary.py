"""Find where the frozen first layers of a model end: the layers that run before any trainable parameter is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.freezing.selection import Selection
from runner.tracing import tracing


@torch.random.fork_rng()  # the forward pass may use random numbers
def frozen_prefix(model: nn.Module, selection: Selection, input: Sequence[int]) -> tuple[str | None, str]:
    """Find the module at which the frozen first layers of the model end, and return (module name, "").

    Returns (None, reason) if there is no such module or the model cannot be copied or hooked. `selection`: what is frozen.
    `input`: shape of one sample.
    The trainable layers depend on the frozen layers only through this module's output. To find the module, each candidate's
    output is detached on a copy of the model in eval mode. A candidate fits if exactly the trainable parameters then still
    get gradients. If several fit, the last one in the forward pass is returned. The model and its random state do not
    change.
    """
    if scripted := [name or "the model" for name, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule)]:
        return None, f"{scripted[0]} is a ScriptModule, which takes no hook: the frozen prefix cannot be found"
    frozen_names = [name for name, parameter in model.named_parameters() if parameter in selection]
    try:
        copied = copy.deepcopy(model).eval()
    except RuntimeError as error:  # a non-leaf tensor as an attribute, as with the old weight_norm
        return None, f"the model cannot be copied to look for its frozen prefix: {error}"
    parameters = dict(copied.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen_names)
    sample = torch.zeros(2, *input, device=next(copied.parameters()).device)
    expected = _parameters_with_gradient(copied, sample)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for name in reversed(_boundary_candidates(copied, sample, {parameters[name] for name in frozen_names})):
        handle = copied.get_submodule(name).register_forward_hook(_detach_output)
        reached = _parameters_with_gradient(copied, sample)
        handle.remove()
        if reached == expected:
            return name, ""
    return None, f"{frozen_names[0]} is frozen, but no single module's output separates frozen from trained layers"


def _detach_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Return the output of a module, detached from the autograd graph if the output is a tensor; a forward hook."""
    return output.detach() if isinstance(output, Tensor) else output


def _parameters_with_gradient(model: nn.Module, sample: Tensor) -> set[str]:
    """Return the names of the parameters that get a gradient from the sum of the model's output for `sample`."""
    output = model(sample)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not isinstance(output, Tensor) or not output.requires_grad or not parameters:
        return set()
    gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _boundary_candidates(model: nn.Module, sample: Tensor, frozen: set[nn.Parameter]) -> list[str]:
    """Return the names of the modules at which the frozen first layers may end, in the order in which they finish.

    A candidate is called exactly once in the forward pass of `sample`, and returns one tensor. It finishes after every
    module with parameters in `frozen` has been called. It also finishes before any module with other parameters is called.
    """
    ended: list[str] = []
    trainable_called: list[str] = []

    def begin(name: str, module: nn.Module, *_: Any) -> None:
        own = list(module.parameters(recurse=False))
        if any(parameter not in frozen for parameter in own):
            trainable_called.append(name)
        elif own:
            ended.clear()  # they ended before this frozen module

    def end(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not trainable_called and isinstance(output, Tensor):
            ended.append(name)

    with tracing(model, begin, end):
        model(sample)
    return [name for name in ended if ended.count(name) == 1]

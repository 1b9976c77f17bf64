"""Find where the frozen first layers of a model end: the layers that run before any trainable parameter is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example
from runner.methods.prefix.trial import trial_copy
from runner.seeding import preserve_random_state
from runner.tensors import map_tensors, tensors_in
from runner.tracing import tracing

NO_EXAMPLE = "there is no batch to look for the frozen prefix with: the data are empty, or the method has no `example`"


def frozen_prefixes(
    model: nn.Module, selection: Selection, example: Example | None, *, may_use_again: bool = False
) -> Iterator[str]:
    """Yield the names of the modules at which the frozen first layers of the model can end.

    The trainable layers depend on the frozen layers only through such a module's output. To find these modules, each
    candidate's output is detached in a step on a copy of the model. A candidate fits if exactly the trainable parameters
    then still get gradients. The last one in the forward pass is yielded first. The model and its random state do not
    change.

    `selection`: what is frozen. `example`: the training step. `may_use_again`: whether a frozen parameter may be used again
    after the module, as the embedding is by an output layer tied to it. Raises SkippedError if there is no such module or
    the model cannot be copied or hooked. What model or task raise is passed on.
    """
    if scripted := [name or "the model" for name, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule)]:
        raise SkippedError(f"{scripted[0]} is a ScriptModule, which takes no hook: the frozen prefix cannot be found")
    if example is None:
        raise SkippedError(NO_EXAMPLE)
    frozen_names = [name for name, parameter in model.named_parameters() if parameter in selection]
    copied, example = trial_copy(model, selection, example)
    parameters = dict(copied.named_parameters())
    frozen = [parameters[name] for name in frozen_names]
    _require_grad(parameters.values(), True)
    _require_grad(frozen, False)
    expected = _parameters_with_gradient(copied, parameters, example)
    found = False
    for name in _boundary_candidates(copied, example, frozen, may_use_again):
        with _cut_after(copied.get_submodule(name), frozen, may_use_again):
            reached = _parameters_with_gradient(copied, parameters, example)
        if reached == expected:
            found = True
            yield name
    if not found:
        name = next(iter(selection.parameters))
        raise SkippedError(f"{name} is frozen, but no single module's output separates frozen from trained layers")


def _require_grad(parameters: Iterable[Tensor], value: bool) -> None:
    """Set `requires_grad` of the parameters, except of those that cannot have a gradient, such as integers."""
    for parameter in parameters:
        parameter.requires_grad_(value and (parameter.is_floating_point() or parameter.is_complex()))


@contextmanager
def _cut_after(module: nn.Module, frozen: Sequence[Tensor], may_use_again: bool) -> Iterator[None]:
    """Within the `with` block, gradients reach the frozen parameters, but not through the output of the module.

    `may_use_again`: from the end of the module on, gradients do not reach the frozen parameters in any way.
    """
    _require_grad(frozen, True)

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        if may_use_again:
            _require_grad(frozen, False)
        return map_tensors(output, Tensor.detach)

    with module.register_forward_hook(cut):
        yield


def _parameters_with_gradient(model: nn.Module, parameters: Mapping[str, Tensor], example: Example) -> set[str]:
    """Return the names of those of the `parameters` to which the loss of the example has a gradient.

    Uses the same random numbers in each call.
    """
    wanted = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    with preserve_random_state():
        loss = example.loss(model)
    if not isinstance(loss, Tensor) or not loss.requires_grad or not wanted:
        return set()
    _require_grad(wanted.values(), True)  # where `_cut_after` turned it off
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None}


def _boundary_candidates(model: nn.Module, example: Example, frozen: Sequence[Tensor], may_use_again: bool) -> list[str]:
    """Return the names of the modules at which the frozen first layers may end, the last one first.

    A candidate is called exactly once in a step, and its output contains tensors. It finishes before any module with other
    parameters than `frozen` is called and, without `may_use_again`, after every module with parameters in `frozen` has been
    called. Raises SkippedError if the task does not call the model exactly once.
    """
    frozen_ids = {id(parameter) for parameter in frozen}
    ended: list[str] = []
    trainable_called: list[str] = []
    calls: Counter[str] = Counter()

    def begin(name: str, module: nn.Module, *_: Any) -> None:
        own = list(module.parameters(recurse=False))
        calls[name] += 1
        if any(id(parameter) not in frozen_ids for parameter in own):
            trainable_called.append(name)
        elif own and not may_use_again:
            ended.clear()  # they ended before this frozen module

    def end(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not trainable_called and tensors_in(output):
            ended.append(name)

    with preserve_random_state(), tracing(model, begin, end):
        example.loss(model)
    if calls[""] != 1:
        raise SkippedError(f"the task calls the model {calls['']} times in a step; a frozen prefix needs exactly one call")
    return [name for name in reversed(ended) if calls[name] == 1]

"""Check on copies whether the frozen first layers (the prefix) give the same output each time they run on a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example
from runner.methods.prefix.bypass import BoundaryReachedError, Bypass
from runner.seeding import preserve_random_state, random_state
from runner.tensors import leaves_in, map_tensors, same_bits, tensor_entries, tensors_in
from runner.tracing import tracing

NOT_DETERMINISTIC = "gives different outputs for the same samples, or uses random numbers"


@torch.no_grad()
def why_not_repeatable(model: nn.Module, selection: Selection, boundary: str, example: Example) -> str:
    """Return why the outputs of the frozen first layers cannot be reused in later epochs, or "" if they can be.

    Checks two conditions. First, each module that is called up to `boundary` and that `selection` does not keep in eval mode
    must give the same bits in training mode as in eval mode. Second, two runs of the frozen first layers must give the same
    bits and use no random numbers. `model` and `example`: those that `trial_copy` returns. `boundary`: name of the last
    module of the frozen first layers. The random state does not change.
    """
    modes = {module: name not in selection.modules for name, module in model.named_modules()}
    with preserve_random_state():
        for name, module, args, kwargs in _calls_in_training_mode(model, modes, boundary, example):
            if difference := _mode_difference(module, modes, args, kwargs):
                what = f"{name or 'the model'}, a {type(module).__name__},"
                if difference == "repeated":
                    return f"{what} {NOT_DETERMINISTIC}"
                advice = f"add {name} to freeze.patterns" if selection.modules else "give freeze.buffers=frozen"
                return f"{what} is not held in eval mode and behaves differently in training; {advice}"
        _set_modes(model, modes)
        before = random_state()
        first, second = (boundary_output(model, boundary, example) for _ in range(2))
        if not same_bits(first, second) or random_state() != before:
            return f"the frozen prefix {NOT_DETERMINISTIC}"
    return ""


def _set_modes(model: nn.Module, modes: Mapping[nn.Module, bool] | None) -> None:
    """Set each module's `training` flag to `modes[module]`; without `modes`, put all modules into eval mode."""
    for module in model.modules():
        module.training = modes is not None and modes[module]


def _calls_in_training_mode(
    model: nn.Module, modes: Mapping[nn.Module, bool], boundary: str, example: Example
) -> list[tuple[str, nn.Module, Any, Any]]:
    """Run the model until the module `boundary` has finished; return the calls of modules that are in training mode.

    Returns a list of (module name, module, args, kwargs), in the order in which the calls finish. `modes`: the
    `training` flag of each module. The tensors in `args` and `kwargs` are copies.
    """
    calls: list[tuple[str, nn.Module, Any, Any]] = []
    open_calls: list[Any] = []

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        open_calls.append(map_tensors((args, kwargs), Tensor.clone) if modes[module] else None)

    def end(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if (arguments := open_calls.pop()) is not None:
            calls.append((name, module, *arguments))
        if name == boundary:
            raise BoundaryReachedError(output)

    with tracing(model, begin, end), suppress(BoundaryReachedError):
        example.loss(model)
    return calls


def _mode_difference(module: nn.Module, modes: Mapping[nn.Module, bool], args: Any, kwargs: Any) -> str:
    """Return how calls of a module with the same arguments differ: "repeated", "training", or "" if they do not.

    "repeated": two calls in eval mode differ. "training": two calls in eval mode are equal, but a call in the modes `modes`
    differs from them. Two calls are equal if the module's outputs, parameters and buffers have the same bits after both, and
    neither changes the random state. `modes`: the `training` flag of each module. `args`, `kwargs`: the arguments of the
    call.
    """

    def run(modes: Mapping[nn.Module, bool] | None) -> list[Any]:
        _set_modes(module, modes)
        copied_args, copied_kwargs = map_tensors((args, kwargs), Tensor.clone)
        output = module(*copied_args, **copied_kwargs)
        return [*tensors_in(output), *(entry.tensor.clone() for entry in tensor_entries(module).values())]

    before = random_state()
    first, second = run(None), run(None)
    if not all_same(first, second) or random_state() != before:
        return "repeated"
    return "" if all_same(first, run(modes)) and random_state() == before else "training"


def all_same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Return whether two lists of tensors (or None) have the same length and the same bits at each index."""
    return len(first) == len(second) and all(
        a is b is None or (a is not None and b is not None and same_bits(a, b)) for a, b in zip(first, second, strict=True)
    )


def boundary_output(model: nn.Module, boundary: str, example: Example) -> Tensor:
    """Return the output (N, ...) of the module `boundary` for a batch of N samples, without its autograd graph.

    `boundary`: name of the last module of the frozen first layers; the forward pass ends as soon as it has returned. Raises
    SkippedError if it does not return one tensor with N rows, alone or beside None in tuples or mappings, or is not called.
    """

    def stop(name: str, output: Any) -> None:
        raise BoundaryReachedError(output)

    bypass = Bypass(model, boundary, [])
    try:
        with bypass.record(stop):
            example.loss(model)
    except BoundaryReachedError as reached:
        output, *others = [leaf for leaf in leaves_in(reached.output) if leaf is not None]
        if others or not isinstance(output, Tensor) or output.shape[:1] != tensors_in(example.batch)[0].shape[:1]:
            raise SkippedError(f"{boundary or 'the model'} does not return one tensor with one row per sample") from None
        return output.detach().clone()
    finally:
        bypass.undo()
    raise SkippedError(f"the task does not call {boundary or 'the model'} in every step")

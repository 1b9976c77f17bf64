"""Check on copies whether a training step without the frozen first layers (the prefix) gives the same bits as a full one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Task
from runner.methods.prefix.bypass import (
    BoundaryReachedError,
    Bypass,
    Recording,
    filled_placeholder,
    meta_placeholder,
)
from runner.seeding import preserve_random_state, random_state
from runner.tensors import map_tensors, same_bits, tensor_entries, tensors_in
from runner.tracing import tracing

NOT_DETERMINISTIC = "gives different outputs for the same samples, or uses random numbers"


@torch.no_grad()
def why_not_repeatable(model: nn.Module, selection: Selection, boundary: str, sample: Tensor) -> str:
    """Return why the outputs of the frozen first layers cannot be reused in later epochs, or "" if they can be.

    Checks two conditions on a copy of the model. First, each module that is called up to `boundary` and that `selection`
    does not keep in eval mode must give the same bits in training mode as in eval mode. Second, two runs of the frozen first
    layers must give the same bits and use no random numbers. `boundary`: name of the last module of the frozen first layers.
    `sample`: an input batch with any values. The model and the random state do not change.
    """
    copied = copy.deepcopy(model)
    modes = {module: name not in selection.modules for name, module in copied.named_modules()}
    with preserve_random_state():
        for name, module, args, kwargs in _prefix_calls(copied, boundary, sample):
            if modes[module] and (difference := _mode_difference(module, modes, args, kwargs)):
                what = f"{name or 'the model'}, a {type(module).__name__},"
                if difference == "repeated":
                    return f"{what} {NOT_DETERMINISTIC}"
                advice = f"add {name} to freeze.patterns" if selection.modules else "give freeze.buffers=frozen"
                return f"{what} is not held in eval mode and behaves differently in training; {advice}"
        _set_modes(copied, modes)
        before = random_state()
        first, second = (_boundary_output(copied, _call_model, boundary, [sample.clone()]) for _ in range(2))
        if not same_bits(first, second) or random_state() != before:
            return f"the frozen prefix {NOT_DETERMINISTIC}"
    return ""


def _call_model(model: nn.Module, batch: Sequence[Tensor]) -> Any:
    """Return the model's output for the first tensor of the batch; used in place of a task where no loss is needed."""
    return model(batch[0])


def _set_modes(model: nn.Module, modes: Mapping[nn.Module, bool] | None) -> None:
    """Set each module's `training` flag to `modes[module]`; without `modes`, put all modules into eval mode."""
    for module in model.modules():
        module.training = modes is not None and modes[module]


def _prefix_calls(model: nn.Module, boundary: str, sample: Tensor) -> list[tuple[str, nn.Module, Any, Any]]:
    """Run the model in eval mode until the module `boundary` has finished, and return the module calls up to there.

    Returns a list of (module name, module, args, kwargs), in the order in which the calls finish; the call of `boundary` is
    the last. The tensors in `args` and `kwargs` are copies.
    """
    calls: list[tuple[str, nn.Module, Any, Any]] = []
    open_calls: list[tuple[Any, Any]] = []

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        open_calls.append(map_tensors((args, kwargs), Tensor.clone))

    def end(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((name, module, *open_calls.pop()))
        if name == boundary:
            raise BoundaryReachedError(output)

    _set_modes(model, None)
    with tracing(model, begin, end), suppress(BoundaryReachedError):
        model(sample.clone())
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
    if not _all_same(first, second) or random_state() != before:
        return "repeated"
    return "" if _all_same(first, run(modes)) and random_state() == before else "training"


def _all_same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Return whether two lists of tensors (or None) have the same length and the same bits at each index."""
    return len(first) == len(second) and all(
        a is b is None or (a is not None and b is not None and same_bits(a, b)) for a, b in zip(first, second, strict=True)
    )


def _boundary_output(model: nn.Module, task: Task, boundary: str, batch: Sequence[Tensor]) -> Tensor:
    """Return the output (N, ...) of the module `boundary` for a batch of N samples, without its autograd graph.

    `boundary`: name of the last module of the frozen first layers. `task(model, batch)` runs the model; the forward pass
    ends as soon as this module has returned. Raises SkippedError if the module's output is not a tensor with N rows. Also
    raises SkippedError if the task does not call the model with `batch[0]` unchanged.
    """

    def stop(name: str, output: Any) -> None:
        raise BoundaryReachedError(output)

    bypass = Bypass(model, boundary, [])
    try:
        with bypass.record(batch[0], stop):
            task(model, batch)
    except BoundaryReachedError as reached:
        output = reached.output
        if not isinstance(output, Tensor) or not output.dim() or len(output) != len(batch[0]):
            raise SkippedError(f"{boundary or 'the model'} does not return a tensor with one row per sample") from None
        return output.detach().clone()
    finally:
        bypass.undo()
    raise SkippedError("the task does not pass the samples of a batch (tensor, ...) to the model unchanged")


def verified_recording(
    model: nn.Module,
    boundary: str,
    prefix_modules: Sequence[str],
    task: Task,
    batch: Sequence[Tensor],
    dim_order: Sequence[int] | None,
) -> tuple[Recording, Sequence[int], float]:
    """Record the frozen first layers on a copy, and check that a step which skips them has the same bits as a full step.

    Compares loss, gradients, parameters, buffers and random state. Raises SkippedError if any of them differs.

    `boundary`: name of the last module of the frozen first layers. `prefix_modules`: the names that `find_prefix_modules`
    returns. `dim_order`: the memory order of the dimensions of the boundary's output, if it is known from an earlier call.
    Returns (recording, order, difference). `recording`: placeholders for the outputs of the frozen modules. `order`:
    `dim_order` if given, otherwise the memory order found here. `difference`: the largest absolute change of the boundary's
    output for a sample when the sample is at another index in the batch.
    """
    output, position_difference = _repeated_output(model, boundary, task, batch)
    dim_order = dim_order or memory_dim_order(output)
    recording = Recording(meta_placeholder(batch[0]))

    def save(name: str, output: Any) -> None:
        if name != boundary:
            recording.outputs.append((name, map_tensors(output, meta_placeholder)))

    run = partial(_step_result, model=model, boundary=boundary, prefix_modules=prefix_modules, task=task)
    full_step = run(batch=_clones(batch), context=lambda bypass, x: bypass.record(x, save))
    rows, problem = output.permute(*dim_order).contiguous(), ""
    # Meta placeholders first. A model that needs values gets filled ones, and must come to the same result with each.
    for values in ((), (nan, 1e30, -1e30)):
        filled: list[Any] = [partial(filled_placeholder, value, device=batch[0].device) for value in values]
        recordings = [_with_placeholders(recording, placeholder) for placeholder in filled or [meta_placeholder]]
        try:
            for replayed in recordings:
                replay = partial(_replay, replayed, rows, dim_order)
                if not _same_result(full_step, run(batch=[replayed.x, *_clones(batch[1:])], context=replay)):
                    raise ValueError("loss, gradients, buffers or the random state differ")
            return recordings[0], dim_order, position_difference
        except Exception as error:  # the user's model or task may fail on placeholders
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise SkippedError(f"the frozen prefix cannot be skipped in a step: {problem}")


def _with_placeholders(recording: Recording, placeholder: Callable[[Tensor], Tensor]) -> Recording:
    """Return a copy of the recording in which each tensor is replaced by `placeholder(tensor)`."""
    outputs = [(name, map_tensors(output, placeholder)) for name, output in recording.outputs]
    return Recording(placeholder(recording.x), outputs)


def _replay(
    recording: Recording, rows: Tensor, dim_order: Sequence[int], bypass: Bypass, x: Tensor
) -> AbstractContextManager[None]:
    """Return a context manager: in its `with` block, the model runs without its frozen first layers.

    The last frozen module returns a copy of `rows`; the others return the placeholders in `recording`. `rows`: the stored
    output of the last frozen module, one row per sample, with its dimensions in the order `dim_order`. `bypass`: the object
    that skips the layers. `x`: not used.
    """
    return bypass.replay(recording, lambda: restore_dim_order(rows.clone(), dim_order))


def _repeated_output(model: nn.Module, boundary: str, task: Task, batch: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Return (output, difference) for the module `boundary`, the last module of the frozen first layers.

    `output`: the module's output for the batch. `difference`: the largest absolute change of the output for a sample when
    the sample is at another index in the batch. Raises SkippedError if a second run gives other bits, if `difference` is
    larger than rounding can explain, or if model or task cannot be copied.
    """
    try:
        copied, copied_task = copy.deepcopy(model), copy.deepcopy(task)
    except Exception as error:
        raise SkippedError(f"model and task cannot be copied to check the frozen prefix: {error}") from error
    with preserve_random_state(), torch.no_grad():
        output, second = (_boundary_output(copied, copied_task, boundary, _clones(batch)) for _ in range(2))
        if not same_bits(output, second):
            raise SkippedError("the frozen prefix gives different outputs for the same samples")
        differences = []
        for positions in _other_positions(len(batch[0])):
            index = torch.tensor(positions, device=batch[0].device)
            moved = _boundary_output(copied, copied_task, boundary, [part[index] for part in batch])
            expected = output[index.to(output.device)]
            differences.append(0.0 if same_bits(moved, expected) else rounding_difference(moved, expected))
        return output, max(differences)


def _same_result(first: tuple[list[Any], bytes], second: tuple[list[Any], bytes]) -> bool:
    """Return whether two results of `_step_result`, (tensors, random state), have the same bits."""
    return _all_same(first[0], second[0]) and first[1] == second[1]


def _step_result(
    model: nn.Module,
    boundary: str,
    prefix_modules: Sequence[str],
    task: Task,
    batch: list[Tensor],
    context: Callable[[Bypass, Tensor], AbstractContextManager[None]],
) -> tuple[list[Any], bytes]:
    """Return (tensors, random state) after one forward and backward pass on a copy of the model.

    `tensors` is a list: the loss, the gradients (None where there is none), then the parameters and buffers.
    `context(bypass, x)` returns the context manager in which the task runs: `Bypass.record` runs the frozen first layers,
    and `Bypass.replay` skips them. `boundary`: name of the last module of the frozen first layers. `prefix_modules`: the
    names that `find_prefix_modules` returns.
    """
    copied, copied_task = copy.deepcopy(model), copy.deepcopy(task)
    bypass = Bypass(copied, boundary, prefix_modules)
    with preserve_random_state():
        with context(bypass, batch[0]):
            loss = copied_task(copied, batch)
            if loss.requires_grad:
                loss.backward()
        tensors = [entry.tensor for entry in tensor_entries(copied).values()]
        return [loss.detach(), *(tensor.grad for tensor in tensors), *tensors], random_state()


def _clones(batch: Sequence[Tensor]) -> list[Tensor]:
    """Return a copy of each tensor of the batch."""
    return [part.clone() for part in batch]


def _other_positions(samples: int) -> list[list[int]]:
    """Return two lists of `samples` indices, which reorder a batch of that many samples.

    The first list is 0, 0, 1, 2, ...: each sample moves one index up, the first is repeated and the last is dropped. The
    second list reverses the batch.
    """
    return [[0, *range(samples - 1)], list(range(samples))[::-1]]


def rounding_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference between two tensors of floats.

    Raises SkippedError if the difference is larger than rounding can explain, if the shapes differ, if `found` has no float
    dtype, or if NaN is in different places.
    """
    if found.shape == expected.shape and found.is_floating_point():
        difference = float((found.double() - expected.double()).abs().nan_to_num(0.0).max())
        tolerance = torch.finfo(found.dtype).eps ** 0.5 * float(expected.double().abs().nan_to_num(0.0).max())
        if difference <= tolerance and torch.equal(found.isnan(), expected.isnan()):
            return difference
    raise SkippedError("the frozen prefix's output for a sample depends on the other samples of its batch")


def memory_dim_order(rows: Tensor) -> list[int]:
    """Return the dimensions of `rows` (N, ...) in memory order: 0 first, then the others from largest to smallest stride."""
    return [0, *sorted(range(1, rows.dim()), key=rows.stride, reverse=True)]


def restore_dim_order(rows: Tensor, dim_order: Sequence[int]) -> Tensor:
    """Undo `permute(dim_order)`: return the view `tensor` of `rows` for which `tensor.permute(dim_order)` equals `rows`."""
    return rows.permute(*sorted(range(len(dim_order)), key=lambda dim: dim_order[dim]))

"""Check on copies whether a training step without the frozen first layers (the prefix) gives the same bits as a full one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import SkippedError
from runner.methods.base import Example
from runner.methods.prefix.bypass import Bypass, Recording, filled_placeholder, meta_placeholder
from runner.methods.prefix.output_cache import RowFormat, memory_dim_order, restore_dim_order, row_format
from runner.methods.prefix.repeatable import all_same, boundary_output
from runner.methods.prefix.trial import copied_together
from runner.seeding import preserve_random_state, random_state
from runner.tensors import map_tensors, same_bits, tensor_entries, tensors_in

StepResult = tuple[list[Any], bytes]  # (tensors, random state)


@dataclass
class Prefix:
    """Where the frozen first layers of a model end.

    Attributes:
        boundary: name of the last frozen module.
        modules: the names that `find_prefix_modules` returns.
    """

    boundary: str
    modules: list[str]


def verified_recording(
    model: nn.Module, prefix: Prefix, example: Example, dim_orders: Mapping[RowFormat, Sequence[int]]
) -> tuple[Recording, float]:
    """Record the frozen first layers on a copy, and check that a step which skips them has the same bits as a full step.

    Compares loss, gradients, parameters, buffers and random state. Raises SkippedError if any of them differs. Modules
    without parameters run in a step that skips the others if a later layer needs their output.

    `dim_orders`: the memory orders of dimensions in which outputs of the last frozen module are already stored. Returns
    (recording, difference). `recording`: placeholders for the outputs of the modules to skip. `difference`: the largest
    absolute change of the last frozen module's output for a sample when the other samples of its batch change.
    """
    output, difference = _repeated_output(model, prefix.boundary, example)
    dim_order = dim_orders.get(row_format(output)) or memory_dim_order(output)
    recording = Recording(dim_order=dim_order)

    def save(name: str, output: Any) -> None:
        placeholders = map_tensors(output, meta_placeholder)
        if name == prefix.boundary:
            recording.last = placeholders
        else:
            recording.outputs.setdefault(name, []).append(placeholders)

    run = partial(_step_result, model, prefix, example)
    full_step = run(lambda bypass: bypass.record(save))
    rows, device, problem = output.permute(*dim_order).contiguous(), tensors_in(example.batch)[0].device, ""
    with_parameters = {name: each for name, each in recording.outputs.items() if [*model.get_submodule(name).parameters()]}
    # Meta placeholders first. A model that needs values gets filled ones, and must come to the same result with each.
    for skipped in (recording, replace(recording, outputs=with_parameters)):
        for values in ((), (nan, 1e30, -1e30)):
            filled: list[Any] = [partial(filled_placeholder, value, device=device) for value in values]
            attempts = [skipped.map(placeholder) for placeholder in filled or [meta_placeholder]]
            try:
                if all(_same_result(full_step, run(partial(_replay, each, rows))) for each in attempts):
                    return attempts[0], difference
                problem = problem or "loss, gradients, buffers or the random state differ"
            except TimeoutError:  # of the run, which may end any line
                raise
            except Exception as error:  # the user's model or task may fail on placeholders
                problem = problem or f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise SkippedError(f"the frozen prefix cannot be skipped in a step: {problem}")


def _replay(recording: Recording, rows: Tensor, bypass: Bypass) -> AbstractContextManager[Bypass]:
    """Return a context manager: in its `with` block, the model runs without its frozen first layers.

    The last frozen module returns a copy of `rows`; the others return the placeholders in `recording`. `rows`: the stored
    output of the last frozen module, one row per sample, with its dimensions in the order `recording.dim_order`. `bypass`:
    the object that skips the layers.
    """
    return bypass.replay(recording, lambda: restore_dim_order(rows.clone(), recording.dim_order))


def _repeated_output(model: nn.Module, boundary: str, example: Example) -> tuple[Tensor, float]:
    """Return (output, difference) for the module `boundary`, the last module of the frozen first layers.

    `output`: the module's output for the batch. `difference`: the largest absolute change of the output for a sample when
    the batch has the samples in another order, or only copies of it. Raises SkippedError if a second run gives other bits,
    if `difference` is larger than rounding can explain, or if model or task cannot be copied.
    """
    copied, task = copied_together(model, example.task)
    with preserve_random_state(), torch.no_grad():
        output, second = (boundary_output(copied, boundary, replace(example, task=task)) for _ in range(2))
        if not same_bits(output, second):
            raise SkippedError("the frozen prefix gives different outputs for the same samples")
        differences = []
        for positions in _other_batches(len(output)):
            batch = map_tensors(example.batch, partial(_rows, positions))
            moved = boundary_output(copied, boundary, Example(task, batch))
            expected = _rows(positions, output)
            differences.append(0.0 if same_bits(moved, expected) else rounding_difference(moved, expected))
        return output, max(differences)


def _rows(positions: Sequence[int], tensor: Tensor) -> Tensor:
    """Return the rows of a tensor at these positions."""
    return tensor[torch.tensor(positions, device=tensor.device)]


def _same_result(first: StepResult, second: StepResult) -> bool:
    """Return whether two results of `_step_result`, (tensors, random state), have the same bits."""
    return all_same(first[0], second[0]) and first[1] == second[1]


def _step_result(
    model: nn.Module, prefix: Prefix, example: Example, context: Callable[[Bypass], AbstractContextManager[Bypass]]
) -> StepResult:
    """Return (tensors, random state) after one forward and backward pass on a copy of the model.

    `tensors` is a list: the loss, the gradients (None where there is none), then the parameters and buffers.
    `context(bypass)` returns the context manager in which the task runs: `Bypass.record` runs the frozen first layers, and
    `Bypass.replay` skips them. Raises SkippedError if the task calls the model more than once.
    """
    copied, task = copied_together(model, example.task)
    bypass = Bypass(copied, prefix.boundary, prefix.modules)
    with preserve_random_state():
        with context(bypass):
            loss = replace(example, task=task).loss(copied)
            if bypass.calls != 1:
                raise SkippedError(
                    f"the task calls the model {bypass.calls} times in a step; a frozen prefix needs exactly one call"
                )
            if loss.requires_grad:
                loss.backward()
        tensors = [entry.tensor for entry in tensor_entries(copied).values()]
        return [loss.detach(), *(tensor.grad for tensor in tensors), *tensors], random_state()


def _other_batches(samples: int) -> list[list[int]]:
    """Return the samples, by their indices, of further batches of the same size to try.

    The first one is 0, 0, 1, 2, ...: each sample moves one index up, the first is repeated and the last is dropped. The
    second reverses the batch. In the others, all samples are the first one, and all are the last one.
    """
    return [[0, *range(samples - 1)], list(range(samples))[::-1], [0] * samples, [samples - 1] * samples]


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

"""Whether what a frozen prefix says may be remembered: by experiment on copies, bit by bit, before it is relied on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.prefix.bypass import Bypass, PrefixEndedError, Recording, full_of, on_meta
from runner.seeding import kept_random_state, random_state
from runner.tensors import each_tensor, entries, same_bits
from runner.tracing import tracing

Task = Callable[[nn.Module, Any], Tensor]


@torch.no_grad()
def why_not_repeatable(model: nn.Module, selection: Selection, end: str, sample: Tensor) -> str:
    """Why the prefix would not give the same again in training, or an empty text; `sample` is a batch of any samples.

    Each module of the prefix that is not held in eval mode is run in both modes. The model and its random state
    stay as they are.
    """
    twin = copy.deepcopy(model)
    modes = {module: name not in selection.modules for name, module in twin.named_modules()}
    with kept_random_state():
        for name, module, args, kwargs in _calls(twin, end, sample):
            if modes[module] and (was := _differs(module, modes, args, kwargs)):
                what = f"{name or 'the model'}, a {type(module).__name__},"
                if was == "again":
                    return f"{what} gives other bits when it is run again on the same samples, or draws random numbers"
                more = f"let freeze.patterns match {name}, too" if selection.modules else "give freeze.buffers=frozen"
                return f"{what} is not held in eval mode and behaves otherwise in training; {more}"
        _set(twin, modes)
        before = random_state()
        one, other = (_end_of(twin, lambda model, batch: model(batch[0]), end, [sample.clone()]) for _ in range(2))
        if not same_bits(one, other) or random_state() != before:
            return "the frozen prefix gives other bits when it is run again on the same samples, or draws random numbers"
    return ""


def _set(model: nn.Module, modes: Mapping[nn.Module, bool] | None) -> None:
    for module in model.modules():
        module.training = modes is not None and modes[module]


def _calls(twin: nn.Module, end: str, sample: Tensor) -> list[tuple[str, nn.Module, Any, Any]]:
    """What each module of the prefix was called with in eval mode, those within others first."""
    found: list[tuple[str, nn.Module, Any, Any]] = []
    begun: list[tuple[Any, Any]] = []

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        begun.append(each_tensor((args, kwargs), Tensor.clone))

    def finish(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.append((name, module, *begun.pop()))
        if name == end:
            raise PrefixEndedError(output)

    _set(twin, None)
    with tracing(twin, begin, finish), suppress(PrefixEndedError):
        twin(sample.clone())
    return found


def _differs(module: nn.Module, modes: Mapping[nn.Module, bool], args: Any, kwargs: Any) -> str:
    """`again` where eval mode does not repeat itself, `training` where training gives other bits, writes or draws."""

    def run(modes: Mapping[nn.Module, bool] | None) -> list[Any]:
        _set(module, modes)
        given, options = each_tensor((args, kwargs), Tensor.clone)
        output = module(*given, **options)
        tensors: list[Any] = []
        each_tensor(output, tensors.append)
        return [*tensors, *(entry.tensor.clone() for entry in entries(module).values())]

    before = random_state()
    once, again = run(None), run(None)
    if not _all_same(once, again) or random_state() != before:
        return "again"
    return "" if _all_same(once, run(modes)) and random_state() == before else "training"


def _all_same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(
        a is b is None or (a is not None and b is not None and same_bits(a, b)) for a, b in zip(one, other, strict=True)
    )


def _end_of(twin: nn.Module, task: Callable[..., Any], end: str, batch: Sequence[Tensor]) -> Tensor:
    """What the prefix gives for a batch of a task; raises SkippedError where that is not a tensor of as many samples."""

    def told(name: str, output: Any) -> None:
        raise PrefixEndedError(output)

    splice = Bypass(twin, end, [])
    try:
        with splice.recording(batch[0], told):
            task(twin, batch)
    except PrefixEndedError as reached:
        output = reached.output
        if not isinstance(output, Tensor) or not output.dim() or len(output) != len(batch[0]):
            raise SkippedError(
                f"{end or 'the model'} gives something else than a tensor with a row for each sample"
            ) from None
        return output.detach().clone()
    finally:
        splice.undo()
    raise SkippedError("the task gives the model something else than the samples of a batch (tensor, ...) as they are")


def tried(
    model: nn.Module, end: str, within: Sequence[str], task: Task, batch: Sequence[Tensor], order: Sequence[int] | None
) -> tuple[Recording, Sequence[int], float]:
    """A script by which the model, given what its prefix gave, comes to the very bits that it has without.

    Held against each other, on copies and from one random state: loss, gradients, buffers and the random state after.
    `order`: of the dimensions in which what the prefix gives lies in memory, found where it is None. Also gives it, and the
    largest difference that a sample's place in the batch made. Raises SkippedError where the prefix cannot be left out.
    """
    gave, moved = _repeated(model, end, task, batch)
    order = order or layout(gave)
    script = Recording(on_meta(batch[0]))

    def told(name: str, output: Any) -> None:
        if name != end:
            script.outputs.append((name, each_tensor(output, on_meta)))

    full = _ended(
        model=model, end=end, within=within, task=task, batch=_clones(batch), how=lambda splice, x: splice.recording(x, told)
    )
    rows, said = gave.permute(*order).contiguous(), ""
    # Values that stand for any: what looks at them, in a comparison say, must come to the same with each.
    for values in ((), (nan, 1e30, -1e30)):
        kinds: list[Any] = [partial(full_of, value, device=batch[0].device) for value in values] or [on_meta]
        scripts = [
            Recording(kind(script.x), [(name, each_tensor(it, kind)) for name, it in script.outputs]) for kind in kinds
        ]
        try:
            for played in scripts:
                given = [played.x, *_clones(batch[1:])]
                how = partial(_playing, played, partial(_given, rows, order))
                if not _alike(full, _ended(model=model, end=end, within=within, task=task, batch=given, how=how)):
                    raise ValueError("loss, gradients, buffers or the random state come out otherwise")
            return scripts[0], order, moved
        except Exception as error:  # of anyone's model and task, given stand-ins
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise SkippedError(f"the frozen prefix cannot be left out of a step: {said}")


def _repeated(model: nn.Module, end: str, task: Task, batch: Sequence[Tensor]) -> tuple[Tensor, float]:
    """What the prefix gives for a batch, and the largest difference that a sample's place in it makes.

    Raises SkippedError where that is not the same again.
    """
    try:
        twin, copied = copy.deepcopy(model), copy.deepcopy(task)
    except Exception as error:
        raise SkippedError(f"model and task cannot be copied to try the frozen prefix on them: {error}") from error
    with kept_random_state(), torch.no_grad():
        gave, again = (_end_of(twin, copied, end, _clones(batch)) for _ in range(2))
        if not same_bits(gave, again):
            raise SkippedError("the frozen prefix gives other bits when it is run again on the same samples")
        given: dict[str, Any] = {"twin": twin, "task": copied, "end": end, "batch": batch, "gave": gave}
        return gave, max(_moved(**given, places=index) for index in _places(len(batch[0])))


def _alike(one: tuple[list[Any], bytes], other: tuple[list[Any], bytes]) -> bool:
    return _all_same(one[0], other[0]) and one[1] == other[1]


def _ended(
    model: nn.Module, end: str, within: Sequence[str], task: Task, batch: list[Tensor], how: Callable[..., Any]
) -> tuple[list[Any], bytes]:
    """Loss, gradients and all tensors after one batch on a copy, and the random state."""
    twin, copied = copy.deepcopy(model), copy.deepcopy(task)
    splice = Bypass(twin, end, within)
    with kept_random_state():
        with how(splice, batch[0]):
            loss = copied(twin, batch)
            if loss.requires_grad:
                loss.backward()
        tensors = [entry.tensor for entry in entries(twin).values()]
        return [loss.detach(), *(tensor.grad for tensor in tensors), *tensors], random_state()


def _clones(batch: Sequence[Tensor]) -> list[Tensor]:
    return [part.clone() for part in batch]


def _places(samples: int) -> list[list[int]]:
    """Other places for the samples of a batch: one further with the last left out, and the other way round."""
    return [[0, *range(samples - 1)], list(range(samples))[::-1]]


def _moved(twin: nn.Module, task: Task, end: str, batch: Sequence[Tensor], gave: Tensor, places: list[int]) -> float:
    """The largest difference that other places make; raises SkippedError where that is more than rounding."""
    index = torch.tensor(places, device=batch[0].device)
    expected = gave[index.to(gave.device)]
    found = _end_of(twin, task, end, [part[index] for part in batch])
    if same_bits(found, expected):
        return 0.0
    return largest_difference(found, expected)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Of two tensors; raises SkippedError where it is more than rounding makes."""
    if found.shape == expected.shape and found.is_floating_point():
        difference = float((found.double() - expected.double()).abs().nan_to_num(0.0).max())
        room = torch.finfo(found.dtype).eps ** 0.5 * float(expected.double().abs().nan_to_num(0.0).max())
        if difference <= room and torch.equal(found.isnan(), expected.isnan()):
            return difference
    raise SkippedError("what the frozen prefix gives for a sample depends on the other samples of its batch")


def _playing(script: Recording, give: Callable[[], Tensor], splice: Bypass, x: Tensor) -> Any:
    return splice.playing(script, give)


def _given(rows: Tensor, order: Sequence[int]) -> Tensor:
    return in_memory_order(rows.clone(), order)


def layout(rows: Tensor) -> list[int]:
    """The order of dimensions in which rows lie in memory, the first in front."""
    return [0, *sorted(range(1, rows.dim()), key=rows.stride, reverse=True)]


def in_memory_order(rows: Tensor, order: Sequence[int]) -> Tensor:
    """Rows whose dimensions are in this order, as they were."""
    return rows.permute(*sorted(range(len(order)), key=lambda place: order[place]))

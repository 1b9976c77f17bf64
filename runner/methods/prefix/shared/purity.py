"""Find out by trials whether the outputs of frozen first layers depend on anything that another run may not share."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example
from runner.methods.prefix.repeatable import boundary_output
from runner.methods.prefix.trial import trial_copy
from runner.methods.prefix.unchanged import tensors_of
from runner.seeding import preserve_random_state, without_garbage_collection
from runner.sharing.fingerprint import Fingerprint, NotComparableError
from runner.tensors import same_bits, tensor_entries

OUTSIDE = {  # Python modules in C, without a first underscore, that read what is outside of the model -> what that is
    "time": "the clock",
    "datetime": "the clock",
    "os": "the system",
    "posix": "the system",
    "nt": "the system",
    "io": "a file",
    "mmap": "a file",
    "socket": "a network",
    "random": "random numbers",
    "thread": "a thread",
}


def prefix_tensors(model: nn.Module, boundary: str, modules: Sequence[str]) -> list[Tensor]:
    """Return the tensors that the frozen first layers may use: theirs, and those of the modules that contain them.

    `boundary` and `modules`: see FoundPrefix. Parameters that require a gradient are not among them.
    """
    parts = boundary.split(".") if boundary else []
    containers = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts))]
    direct = [each for module in containers for each in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
    found = {id(each): each for each in (*tensors_of(model, [*modules, boundary]), *direct) if not each.requires_grad}
    return list(found.values())


@torch.no_grad()
def why_not_shared(
    model: nn.Module, selection: Selection, boundary: str, modules: Sequence[str], *, example: Example
) -> str:
    """Return why the outputs of frozen first layers, which are repeatable within a run, are not those of another run.

    Reasons are that a forward pass changes the model's state, reads the clock, a file or the system, or uses tensors of
    later layers. Returns "" if none of them holds. `model`: the model of the run; it and the random state do not change.
    """
    if sys.getprofile() is not None:
        return "a profiler is active, so it cannot be seen what the frozen prefix calls"
    copied, example = trial_copy(model, selection, example)
    try:
        with preserve_random_state():
            own = {id(each) for each in prefix_tensors(copied, boundary, modules)}
            before = _state(copied, example, own)
            first = boundary_output(copied, boundary, example)
            with calls_outside() as calls:
                boundary_output(copied, boundary, example)
            example.loss(copied)
            if _state(copied, example, own) != before:
                return "a forward pass changes attributes of the model or of the task, or tensors of the frozen prefix"
            if calls:
                return f"the frozen prefix reads {OUTSIDE[calls[0][0]]} ({'.'.join(calls[0])})"
            for tensor in (*copied.parameters(), *copied.buffers()):
                if id(tensor) not in own:
                    tensor.data = _other_values(tensor)
            if not same_bits(first, boundary_output(copied, boundary, example)):
                return "the frozen prefix depends on tensors of other layers"
    except SkippedError as error:
        return str(error)
    except NotComparableError as error:
        return f"it cannot be told whether another run has the same frozen prefix: {error}"
    except TimeoutError:  # of the run, which may end any line
        raise
    except Exception as error:  # the user's modules may not work with other values
        return f"the frozen prefix cannot be tried: {type(error).__name__}: {error}"
    return ""


def _state(model: nn.Module, example: Example, own: set[int]) -> str:
    """Return a digest of the model and the task, without the bits of parameters and buffers whose ids are not in `own`."""
    others = {id(entry.tensor) for entry in tensor_entries(model).values()} - own
    return Fingerprint(lambda part: id(part) in others).add(model).add(example.task).hexdigest()


def _other_values(tensor: Tensor) -> Tensor:
    """Return a tensor like the given one in which each element has another value; NaN if it has a float dtype."""
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.full_like(tensor, float("nan"))
    return ~tensor if tensor.dtype == torch.bool else tensor + 1


@contextmanager
def calls_outside() -> Iterator[list[tuple[str, str]]]:
    """Yield a list; in the block, each call of a function of a module in OUTSIDE is added as (module, name).

    No garbage is collected meanwhile: what is called then is not called by the code of the block.
    """
    calls: list[tuple[str, str]] = []

    def profile(frame: Any, event: str, function: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__") == "os":
            calls.append(("os", frame.f_code.co_name))
        if event == "c_call":
            owner = getattr(function, "__self__", None)
            owner = owner if isinstance(owner, type) else type(owner)
            module = (getattr(function, "__module__", None) or owner.__module__).lstrip("_")
            if module in OUTSIDE and function.__name__ not in ("fspath", "allocate_lock", "get_ident"):
                calls.append((module, function.__name__))

    with without_garbage_collection():
        sys.setprofile(profile)
        try:
            yield calls
        finally:
            sys.setprofile(None)

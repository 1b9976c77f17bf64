"""A line of a run -> what is foreseen of it: the warnings of its start, and what couples the rest to what is frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from runner.build import build_a
from runner.config import Config
from runner.contract import Coupling
from runner.hazards import FORESEEN_BY_FLAGS, leaks
from runner.preflight import Rehearsal, pulls_of_flags, rehearse
from runner.replay import gradient
from runner.schedulers import build_scheduler

if TYPE_CHECKING:
    from runner.experiment import Line


def warn(line: Line, config: Config, on_warning: Callable[[str], None]) -> None:
    """Tell what would leak in the phases begun, by the scheduler's trace and the optimizer on dummy tensors."""
    line.stages[-1].pulls = pulls_of_flags(line.parameters)
    if line.stages[-1].phase.selection.parameters:
        try:
            rehearsal = rehearsed(line, config)
        except Exception as error:  # of anyone's optimizer, built on other tensors than its own; the run itself will tell
            line.notes.append(f"what would leak could not be foreseen: {type(error).__name__}: {error}")
            return
        line.couples = rehearsal.couples
        for warning in leaks(rehearsal, *labels(line), FORESEEN_BY_FLAGS):
            on_warning(warning)


def rehearsed(line: Line, config: Config) -> Rehearsal:
    """The stages of a line, played by a double."""
    return rehearse(
        line.before.entries,
        line.stages,
        config.steps,
        line.method,
        lambda groups: build_a(Optimizer, config.optimizer, "optimizer", groups),
        lambda optimizer: build_scheduler(config, optimizer),
        config.zero_grad_to_none,
    )


def couplings(line: Line, config: Config) -> list[Coupling]:
    """Through what the frozen part's gradients reached the rest: `clip` (they are in the norm), `optimizer`."""
    pulled = any(gradient(tensor) == "present" for tensor in line.selection.parameters.values())
    by: dict[Coupling, bool] = {"clip": pulled and config.clip is not None, "optimizer": line.couples}
    return [word for word, is_coupled in by.items() if is_coupled]


def labels(line: Line) -> tuple[str, str]:
    """What a method and an optimizer are called in a sentence."""
    method = type(line.method)
    ours = method.__module__.startswith("runner.methods.")
    return method.__module__.rpartition(".")[2] if ours else method.__name__, type(line.optimizer).__name__

"""When phases begin: numbers of steps, of passes over the data, or shares of the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from runner.errors import ConfigError, is_integer, short_repr
from runner.freezing.phases.phase import Run

EXPECTED = "give a number of steps (100), of passes over the data (2 passes), or a share of the run (0.25 or 25%)"
PASSES, PERCENT = re.compile(r"(\d+) pass(es)?"), re.compile(r"(\d+(\.\d+)?)%")


def steps_in(value: Any, key: str, run: Run) -> int:
    """Return how many steps a value of the config stands for, at least 1.

    A whole number is a number of steps, a text such as `2 passes` one of passes over the data, a number below 1 and a text
    such as `25%` a share of the run. `key`: the config key of the value. Raises ConfigError for anything else, and for a
    share of a run, or a pass, whose length is not known.
    """
    if is_integer(value) and value >= 1:
        return value
    text = value.strip() if isinstance(value, str) else ""
    if passes := PASSES.fullmatch(text):
        if not int(passes[1]):
            raise ConfigError(f"{key} is {value!r}; {EXPECTED}")
        require_length(run, key, value)
        return int(passes[1]) * run.steps_a_pass
    share = float(percent[1]) / 100 if (percent := PERCENT.fullmatch(text)) else value
    if isinstance(share, bool) or not isinstance(share, float) or not 0 < share < 1:
        raise ConfigError(f"{key} is {short_repr(value)}; {EXPECTED}")
    require_length(run, key, value)
    return max(1, round(share * run.steps))


def step_at(value: Any, key: str, run: Run) -> int:
    """Return the number of the step that begins when as many steps, passes or shares of the run have passed as `value` says.

    A whole number is the number of the step itself. Raises ConfigError as `steps_in` does.
    """
    return value if is_integer(value) and value >= 1 else 1 + steps_in(value, key, run)


def first_steps(count: int, every: Any, run: Run, key: str = "schedule.every") -> list[int]:
    """Return the first step of each of `count` phases.

    `every`: how long each lasts (see `steps_in`); None divides the run evenly. Raises ConfigError for a bad value, and if
    the run is too short to be divided, or if its length is not known.
    """
    if every is not None:
        length = steps_in(every, key, run)
        return [1 + number * length for number in range(count)]
    require_length(run, key)
    if count > run.steps:
        raise ConfigError(
            f"schedule: the run has {run.steps} step{'s' * (run.steps > 1)}, too few for {count} phases; give more batches, "
            "or fewer schedule.blocks"
        )
    return [1 + number * run.steps // count for number in range(count)]


def require_length(run: Run, key: str, value: Any = None) -> None:
    """Raise ConfigError if the length of the run is a default, because the data have no length of their own."""
    if not run.is_length_known:
        what = "the phases divide the run" if value is None else f"{key} is {value!r}"
        steps = f", or {key} as a number of steps" if key != "schedule" else ""
        raise ConfigError(f"{what}, but the data have no length; give batches=N, the number of batches of a pass{steps}")


def check_number(value: Any, key: str, *, least: float, most: float | None = None, exclusive: bool = False) -> float:
    """Return a number of the config, or raise ConfigError if it is none, or not in its range.

    `exclusive`: the number must be above `least`.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_above = is_number and (value > least if exclusive else value >= least)
    if is_above and (value < float("inf") if most is None else value <= most):
        return value
    lower, upper = (
        f"above {least:g}" if exclusive else f"of {least:g} or more",
        "" if most is None else f", at most {most:g}",
    )
    raise ConfigError(f"{key} is {short_repr(value)}; give a number {lower}{upper}")


def check_choice(value: Any, key: str, choices: Sequence[str]) -> str:
    """Return a word of the config, or raise ConfigError if it is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{key} is {short_repr(value)}; give {', '.join(choices[:-1])} or {choices[-1]}")
    return value


def drops(state: Any) -> bool:
    """Return whether optimizer state is deleted as a parameter freezes; raise ConfigError unless `state` is keep or drop."""
    return check_choice(state, "schedule.state", ("keep", "drop")) == "drop"

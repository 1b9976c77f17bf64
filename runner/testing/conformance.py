"""`conforms`: check that a freezing method does what it claims, for authors of methods in other packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.errors import ConfigError, SkippedError

if TYPE_CHECKING:
    from runner.methods.base import FreezingMethod
    from runner.testing.claims import Candidate


def conforms(method: type[FreezingMethod], **options: Any) -> None:
    """Assert that a freezing method holds what it claims, on small models: this project's own methods pass the same checks.

    It has a docstring; it leaks under the traps of its `leaks_under` and under no other; frozen parameters are held and all
    others are trained, as `requires_grad` trains them, whatever is frozen; and closing `undo` restores the model. Where its
    `skip` gives a reason, nothing is asked of it, but it must freeze something.
    Takes a few seconds. Raises AssertionError with every claim that does not hold, and ConfigError (a ValueError) if
    `method` is not a subclass of FreezingMethod that a config can name.

    Args:
        method: the class, defined at the top of a module.
        options: the arguments that its config gives it, such as `clean=True`.
    """
    from runner.testing.claims import CLAIMS, Candidate

    path = _importable_path(method)
    candidate = Candidate(method, options, {"_target_": path, **options})
    failures: list[str] = []
    first_error: Exception | None = None
    for claim in CLAIMS:
        found, error = _failures_of(claim, candidate)
        failures += found
        first_error = first_error or error
    if failures:
        options_told = "".join(f" {name}={value!r}" for name, value in options.items())
        raise AssertionError(f"{path}{options_told} does not conform:\n" + "\n".join(failures)) from first_error


def _failures_of(claim: Any, candidate: Candidate) -> tuple[list[str], Exception | None]:
    """Return the sentences about a claim that does not hold, and the exception that a run of it raised."""
    told = claim.__doc__.splitlines()[0]
    try:
        return [f"  {told} {failure}" for failure in claim(candidate)], None
    except SkippedError as skipped:
        return [f"  {told} It skips everything that was tried: {skipped}"], skipped
    except Exception as error:
        return [f"  {told} {type(error).__name__}: {error}"], error


def _importable_path(method: object) -> str:
    """Return the dotted path by which a config names a class. Raises ConfigError if it is none, or has no such path."""
    from runner.config.build import locate
    from runner.methods.base import FreezingMethod

    if not (isinstance(method, type) and issubclass(method, FreezingMethod)):
        given = method.__name__ if isinstance(method, type) else f"a {type(method).__name__}"
        raise ConfigError(f"conforms: {given} given; give a subclass of FreezingMethod, and its options as keywords")
    path = f"{method.__module__}.{method.__qualname__}"
    if "<locals>" in path or locate(path, "conforms") is not method:
        raise ConfigError(f"conforms: a config cannot name {path}; define the class at the top of a module")
    return path

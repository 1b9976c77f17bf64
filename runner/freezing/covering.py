"""Names of modules that cover a set of parameters: `layer1` for all that is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set


def by_part(names: Iterable[str], prefix: str = "") -> dict[str, list[str]]:
    """Return {name of a module or parameter directly below `prefix`: those of the names that are in it}.

    `prefix`: "", or the name of a module with a dot at its end; all names begin with it.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(prefix + name.removeprefix(prefix).split(".")[0], []).append(name)
    return parts


def covering_names(names: Sequence[str], covered: Set[str], prefix: str = "") -> Iterator[str]:
    """Yield the names of the largest modules below `prefix` all of whose parameters are covered, and of other parameters.

    `names`: the parameters of the model. `covered`: those that are to be covered, and no others.
    """
    for part, within in by_part(names, prefix).items():
        if covered >= set(within):
            yield part
        elif part not in within:
            yield from covering_names(within, covered, f"{part}.")


def covering_name(names: Sequence[str], covered: Set[str]) -> str:
    """Return the only name that covers these parameters, or the first and the last of several: `conv1..bn1`."""
    words = list(covering_names(names, covered))
    return words[0] if len(words) == 1 else f"{words[0]}..{words[-1]}"

"""What a run says of the weights of a library's model."""

from __future__ import annotations

from collections.abc import Iterable

from runner.errors import listed


def note_of_new(new: Iterable[str]) -> tuple[str, ...]:
    """Return one note that names the modules which the weights did not supply; none if they supplied everything.

    `new`: the names of the parameters and buffers that have the values with which the model was built.
    """
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in sorted(new)))
    if not modules:
        return ()
    return (
        f"model.weights did not supply {listed(modules, 6)}: they begin with random values; "
        "model.head=new trains exactly these",
    )


def not_downloaded(what: str, source: str) -> str:
    """Return the message for weights that cannot be downloaded. `source`: where they are, an address or a name."""
    return (
        f"{what}: {source} cannot be downloaded, as it cannot be reached from here; give a file that has it, "
        "model.weights=FILE, or model.weights=null for random values"
    )

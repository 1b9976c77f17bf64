"""The colour and the marker of each method, the same in every figure of a page, visible on its light and its dark ground."""

from __future__ import annotations

from collections.abc import Iterable

# Each has a contrast of 3 or more on white and on the dark ground of the page.
COLOURS = {
    "requires_grad": "#2f74e0",
    "zero_lr": "#cf6a00",
    "zero_grad": "#178a4a",
    "detach": "#8b5cf6",
    "exclude": "#0d9aa5",
    "to_buffer": "#94603a",
    "restore": "#e0409f",
    "cached_prefix": "#7d8a00",
    "none": "#7b828d",
    "grad_none": "#3b9bdc",
    "": "#dc3545",  # this one and the next are no method's own
    " ": "#a83a7a",
}
MARKERS = {  # name: the path of a marker around the origin, about 7 wide
    "circle": "m-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0z",
    "square": "m-2.7,-2.7h5.4v5.4h-5.4z",
    "triangle": "m0,-3.5l3.5,6.2h-7z",
    "diamond": "m0,-3.8l3.8,3.8l-3.8,3.8l-3.8,-3.8z",
    "down": "m0,3.5l3.5,-6.2h-7z",
    "plus": "m-1,-3.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5v-2h2.5z",
    "bar": "m-1.2,-3.5h2.4v7h-2.4z",
}


def method_colours(names: Iterable[str]) -> dict[str, str]:
    """Return {method name: colour}: its own where it has one that is free, else the next free one; then they repeat.

    `names`: the methods of all runs of a report, in their order, so that every figure gives a method the same colour.
    """
    names = list(dict.fromkeys(names))
    taken = {name: COLOURS[base] for name in reversed(names) if (base := name.split(" ")[0]) in COLOURS and base == name}
    free = [colour for colour in reversed(COLOURS.values()) if colour not in taken.values()]
    colours = {}
    for number, name in enumerate(names):
        spare = free.pop(0) if name not in taken and free else list(COLOURS.values())[number % len(COLOURS)]
        colours[name] = taken.get(name, spare)
    return colours


def method_markers(names: Iterable[str]) -> dict[str, str]:
    """Return {method name: the name of its marker in MARKERS}, the second sign beside its colour."""
    return {name: list(MARKERS)[number % len(MARKERS)] for number, name in enumerate(dict.fromkeys(names))}

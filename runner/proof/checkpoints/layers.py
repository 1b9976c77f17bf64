"""Rows of tensors summed up: what became of each layer of a model. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan

from runner.contract import Row, Verdict


@dataclass
class Layer:
    """The tensors of a layer that are of one kind and have one verdict.

    Attributes:
        name: the layer: a name up to its first number, or else its first part.
        kind: `parameter` or `buffer`.
        verdict: what became of them.
        tensors, elements: how many there are.
        moved_elements: how many of the elements differ by a bit; None if it is not known of each tensor.
        change_rel: the largest relative change of a tensor; None if none is known.
    """

    name: str
    kind: str
    verdict: Verdict
    tensors: int = 0
    elements: int = 0
    moved_elements: int | None = 0
    change_rel: float | None = None

    @property
    def share(self) -> float | None:
        """The share of the elements that differ, between 0 and 1; None if it is not known."""
        return None if self.moved_elements is None else self.moved_elements / max(1, self.elements)

    def add(self, row: Row) -> None:
        """Add a tensor."""
        self.tensors += 1
        self.elements += row["numel"]
        moved, change = row["moved_elements"], row["change_rel"]
        self.moved_elements = None if moved is None or self.moved_elements is None else self.moved_elements + moved
        if change is not None and (self.change_rel is None or isnan(change) or change > self.change_rel):
            self.change_rel = change


def layers_of(rows: Iterable[Row]) -> list[Layer]:
    """Return the layers that the rows of `changes.csv` are about, in their order."""
    found: dict[tuple[str, str, str], Layer] = {}
    for row in rows:
        key = layer_name(row["name"]), row["kind"], row["verdict"]
        found.setdefault(key, Layer(*key[:2], row["verdict"])).add(row)
    places = {name: place for place, name in enumerate(dict.fromkeys(key[0] for key in found))}
    return sorted(found.values(), key=lambda each: places[each.name])


def layer_name(name: str) -> str:
    """Return the layer of a tensor: its name up to the first number in it, or else its first part."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts[:-1]) if part.isdecimal()), 0)
    return ".".join(parts[: number + 1])

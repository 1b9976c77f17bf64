"""A run is rows: one a parameter or buffer, with the columns of `changes.csv`."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

COLUMNS = (
    "name",
    "aliases",
    "kind",
    "module_type",
    "shape",
    "numel",
    "dtype",
    "frozen",
    "group",
    "lr",
    "requires_grad",
    "initial_l2",
    "change_l2",
    "change_rel",
    "change_max",
    "moved",
    "verdict",
    "cause",
)

"""A run is rows, one a parameter or buffer: the columns of `changes.csv`; and the figures of its cost, by name."""

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

PREDICTED = ("flops_forward", "flops_backward", "saved_bytes", "gradient_bytes", "optimizer_state_bytes")
SECONDS = ("seconds_forward", "seconds_backward", "seconds_step")
MEASURED = (*PREDICTED, "peak_memory_bytes", *SECONDS)  # what can be held against an unfrozen run
COSTS = (
    *PREDICTED,
    "parameter_bytes",
    "peak_memory_bytes",
    *SECONDS,
    *(f"{key}_spread" for key in SECONDS),
    "frozen_gradient_bytes",
    "frozen_optimizer_state_bytes",
    *(f"{key}_share" for key in MEASURED),
    "flops_share",
    "flops_counted_on",
    "peak_memory_by",
    "why_small",
)

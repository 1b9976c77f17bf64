"""What `run.json` says about the phases of a run: their steps, and what was frozen in each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import isfinite, sqrt

from torch import Tensor

from runner.contract import BlockRecord, PhaseRecord, Row
from runner.freezing.phases.factors import factor_at
from runner.freezing.phases.phase import Blocks, Phase, reached_phases


def phase_records(
    phases: Sequence[Phase],
    steps: int,
    parameters: Collection[Tensor],
    *,
    blocks: Blocks | None = None,
    rows: Sequence[Sequence[Row]] = (),
) -> list[PhaseRecord]:
    """Return each phase that a run of `steps` steps reached: its steps, and how many tensors were frozen and trained in it.

    `parameters`: all parameters of the model, each once. `blocks`: those of the plan; with them, each record says what each
    block did. `rows`: the rows of each phase that was reached, where they are known.
    """
    records: list[PhaseRecord] = []
    for number, (phase, count) in enumerate(reached_phases(phases, steps)):
        frozen = {id(tensor) for tensor in (*phase.selection.parameters.values(), *phase.selection.buffers.values())}
        trained = sum(id(parameter) not in frozen for parameter in parameters)
        last = phase.first + count - 1
        record: PhaseRecord = {"first_step": phase.first, "last_step": last, "frozen": len(frozen), "trained": trained}
        if blocks:
            record["blocks"] = list(_block_records(phase, last, blocks, rows[number] if number < len(rows) else ()))
        records.append(record)
    return records


def _block_records(phase: Phase, last: int, blocks: Blocks, rows: Sequence[Row]) -> Iterator[BlockRecord]:
    """Yield what each block did in a phase; `last`: its last step, `rows`: its rows."""
    row_of = {row["name"]: row for row in rows}
    for name, parameters in blocks.items():
        frozen = all(parameter in phase.selection.parameters for parameter in parameters)
        factor = float(factor_at(phase.factors.get(name, 1.0), last))
        yield {"name": name, "frozen": frozen, "factor": factor, "change_rel": _change_of(parameters, row_of)}


def _change_of(parameters: Sequence[str], row_of: Mapping[str, Row]) -> float | None:
    """Return the norm of the change of several parameters divided by their norm; None if it is not known or not finite."""
    rows = [row_of[name] for name in parameters if name in row_of]
    changes, norms = [row["change_l2"] for row in rows], [row["initial_l2"] for row in rows]
    if not rows or len(rows) < len(parameters) or None in changes or None in norms:
        return None
    change, norm = (sqrt(sum(value * value for value in values if value is not None)) for values in (changes, norms))
    return change / norm if norm and isfinite(change) and isfinite(norm) else None

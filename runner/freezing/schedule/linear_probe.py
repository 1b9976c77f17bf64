"""The schedule `linear_probe_then_finetune`: train what is not selected, such as the head, then everything."""

from __future__ import annotations

from typing import Any

from runner.errors import ConfigError
from runner.freezing.phases.phase import Phase, Plan, Run
from runner.freezing.phases.restriction import is_all, require_selected
from runner.freezing.phases.spans import check_number, drops, first_steps
from runner.freezing.selection import Selection, nothing_of


def linear_probe_then_finetune(
    selection: Selection, run: Run, *, every: Any = None, factor: float = 0.1, state: str = "keep"
) -> Plan:
    """Return a plan of two phases: the selection is frozen for `every` steps (None: half of the run), then nothing is.

    In the second phase, all learning rates are the scheduled ones times `factor`. Raises ConfigError for bad arguments, and
    if everything or nothing is selected.
    Source: Kumar et al. 2022, arXiv:2202.10054 (LP-FT)
    """
    require_selected(selection)
    if is_all(selection, run.model):
        raise ConfigError(
            "schedule=linear_probe_then_finetune: freeze selects every parameter, so that nothing would train at first; "
            "give freeze=backbone"
        )
    check_number(factor, "schedule.factor", least=0)
    others = [name for name, _ in run.model.named_parameters() if name not in selection.parameters]
    blocks = {"frozen at first": tuple(selection.parameters), "trained throughout": tuple(others)}
    first, second = first_steps(2, every, run)
    phases = [Phase(first, selection), Phase(second, nothing_of(selection), factors=dict.fromkeys(blocks, float(factor)))]
    return Plan(phases, blocks, drops_state=drops(state))

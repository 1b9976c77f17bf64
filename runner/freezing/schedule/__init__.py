"""When what is frozen: a schedule takes what is declared frozen and returns the phases of the run, or a Plan of them."""

from runner.freezing.phases.phase import Phase, Plan, reached_phases
from runner.freezing.phases.records import phase_records
from runner.freezing.schedule.block_coordinate import block_coordinate
from runner.freezing.schedule.explicit import explicit
from runner.freezing.schedule.fixed import after, constant
from runner.freezing.schedule.freeze_out import freeze_out
from runner.freezing.schedule.gradual import gradual
from runner.freezing.schedule.linear_probe import linear_probe_then_finetune
from runner.freezing.schedule.when_still import when_still

__all__ = [
    "Phase",
    "Plan",
    "after",
    "block_coordinate",
    "constant",
    "explicit",
    "freeze_out",
    "gradual",
    "linear_probe_then_finetune",
    "phase_records",
    "reached_phases",
    "when_still",
]

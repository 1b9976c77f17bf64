"""When what is frozen: a schedule takes what is declared frozen and returns the phases of the run, or a Plan of them."""

from runner.freezing.schedule.fixed import after, constant
from runner.freezing.schedule.phase import Phase, Plan, phase_records, reached_phases

__all__ = ["Phase", "Plan", "after", "constant", "phase_records", "reached_phases"]

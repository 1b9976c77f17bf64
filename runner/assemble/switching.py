"""Change from one phase of a run to the next: what is frozen, the groups of the optimizer, and what the method has done."""

from __future__ import annotations

from dataclasses import replace

from runner.assemble.phases import groups_of, prepared
from runner.assemble.setup import Setup, refuse_selection
from runner.freezing.eval_mode import force_eval_mode
from runner.freezing.groups import in_all_groups, regroup
from runner.freezing.phases.timetable import Timetable
from runner.freezing.schedule import Phase
from runner.tensors.optimizer_state import drop_state


def begin_phase(setup: Setup, number: int) -> Phase:
    """Begin a later phase of a run: freeze what the phase freezes, and return the phase with its parameter groups.

    `number`: the index of the phase in `setup.phases`, at least 1, because `assembled` begins the first phase. All that the
    freezing method did for the phase that ends is undone, and it is applied to the model anew. Parameters are moved between
    the groups of the existing optimizer; their state goes with them, or is deleted if the plan says so. Changes `setup`.
    Raises SkippedError with the method's reason if it cannot freeze what a phase freezes that was found during the run.
    """
    before, phase = setup.phases[number - 1], setup.phases[number]
    setup.phase_undo.close()
    if setup.plan.observe and (phase.selection.parameters or phase.selection.modules):  # it was not known beforehand
        refuse_selection(setup.method, setup.built_model, phase.selection)
    force_eval_mode(phase.selection, setup.phase_undo)
    setup.model = prepared(setup.method, setup.built_model, phase.selection, setup.phase_undo)
    groups = groups_of(setup.method, setup.declared_groups, phase.selection, apart=setup.plan.thaws)
    groups = in_all_groups(groups, before.groups) if setup.plan.thaws else groups
    phase = setup.phases[number] = replace(phase, groups=tuple(groups))
    regroup(setup.optimizer, before.groups, phase.groups, reset=setup.made_groups)
    if setup.plan.drops_state:
        newly = [each for each in phase.selection.parameters.values() if each not in before.selection]
        drop_state(setup.optimizer, newly)
    setup.factors.begin(phase)
    setup.method.attach(setup.optimizer, phase.selection, setup.phase_undo)
    return phase


def note_phases_not_reached(setup: Setup, timetable: Timetable) -> None:
    """Note it if the data ended before a phase that was planned."""
    later = setup.phases[timetable.present + 1 :]
    if later:
        what = "the next phase would have begun" if setup.plan.thaws else "more would have been frozen"
        setup.note(f"the data ended before step {later[0].first}, where {what}")

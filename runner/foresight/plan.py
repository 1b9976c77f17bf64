"""Print what a run would freeze and what would go wrong, without training or writing files (option `plan=true`)."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.assemble import Setup, assembled, begin_phase, build_batches, build_task
from runner.config.schema import Config
from runner.errors import ConfigError, SkippedError
from runner.foresight.effects import Effect, effect_of_batch
from runner.foresight.hazards import buffer_warnings, idle_warnings, leak_warnings
from runner.foresight.rehearsal import Rehearsal
from runner.foresight.warnings import method_and_optimizer_names, rehearse_phases
from runner.freezing.groups import group_lr, groups_by_tensor
from runner.tensors import tensor_entries, tensor_resolver


def foresee(setup: Setup) -> Rehearsal:
    """Predict which tensors the training would change, and return the predictions.

    A phase is a span of steps with the same frozen layers. The model processes the first batch once in each phase; then all
    steps are simulated on a small stand-in for the model. Changes that only later batches cause are not predicted, such as
    gradients that become 0 or updates that are rounded away. Afterwards `setup` cannot be used to train: its model's buffers
    may have changed, and its last phase has begun. Raises what the training would raise.
    """
    task, first = build_task(setup.config, setup.device), next(build_batches(setup.config, setup.device), None)
    if first is None:
        return rehearse_phases(setup, [Effect()])
    effects = []
    for number in range(len(setup.phases)):
        if number:
            begin_phase(setup, number)
        setup.model.train()
        effects.append(effect_of_batch(setup.model, setup.parameters, task, first.batch))
    return rehearse_phases(setup, effects)


def show_plan(config: Config, console: Console) -> None:
    """Print a table of all parameters, the number of frozen ones, and warnings about what would go wrong.

    The warnings name frozen tensors that would change, and trainable parameters that would not. Raises ConfigError if the
    freezing method does not work with this model or optimizer.
    """

    def note(text: str, *, urgent: bool = False) -> None:
        console.print(f"note: {escape(text)}")

    try:
        with assembled(config, note) as setup:
            console.print(_parameter_table(setup))
            modules = len(setup.selection.modules)
            console.print(
                f"{len(setup.selection.parameters)} of {len(setup.parameters)} parameters would be frozen, "
                f"{modules} modules held in eval mode; nothing was trained or written."
            )
            try:
                rehearsal = foresee(setup)
            except SkippedError as skipped:  # the optimizer refused the stand-in's parameters
                console.print(f"hazards cannot be foreseen: {escape(str(skipped))}")
                return
            owners = {name: entry.owner for name, entry in setup.before.entries.items()}
            hazards = [
                *leak_warnings(rehearsal, *method_and_optimizer_names(setup)),
                *buffer_warnings(rehearsal, list(setup.selection.parameters), owners),
                *idle_warnings(rehearsal),
            ]
            for hazard in hazards:
                console.print(f"[yellow]hazard:[/] {escape(hazard)}")
            if not hazards:
                console.print("no hazard is foreseen: with this batch, everything frozen holds and the rest trains")
    except SkippedError as skipped:
        raise ConfigError(f"skipped: {skipped}") from skipped


def _parameter_table(setup: Setup) -> Table:
    """Return a table of all parameters: shape, group, learning rate, `requires_grad`, and whether frozen."""
    group_of, resolve = groups_by_tensor([setup.optimizer]), tensor_resolver(tensor_entries(setup.model))
    table = Table("parameter", "shape", "group", "lr", "requires_grad", "frozen", box=None, pad_edge=False)
    first = setup.phases[-1].first
    for entry in (entry for entry in setup.before.entries.values() if entry.kind == "parameter"):
        name, group = group_of.get(id(entry.tensor), ("(none)", None))
        tensor = resolve(entry)
        table.add_row(
            " = ".join([entry.name, *entry.aliases]),
            "x".join(map(str, entry.tensor.shape)),
            name,
            str(group_lr(group)) if group else "",
            str(tensor is not None and tensor.requires_grad),
            "" if entry.tensor not in setup.selection else "frozen" if first == 1 else f"from step {first} on",
        )
    return table

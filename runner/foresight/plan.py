"""Look first: what a run would do and what would go wrong, without training and without a folder."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.assemble import Setup, assembled, begin_phase, build_batches, build_task
from runner.config.schema import Config
from runner.errors import ConfigError, SkippedError
from runner.foresight.hazards import drifts, idles, leaks
from runner.foresight.rehearsal import Effect, Rehearsal, effect_of_a_batch
from runner.foresight.warnings import labels, rehearsed
from runner.freezing.groups import placed, rate
from runner.tensors import entries, now


def foresee(setup: Setup) -> Rehearsal:
    """What will become of every tensor, by one batch through each phase of the run and a rehearsal of its steps.

    The setup is used up: its model has seen a batch, and is frozen as in its last phase. Cannot foresee what depends on
    more than one batch: rows of an `Embedding(max_norm=...)` that a later one looks up, gradients that die or are rounded
    away. Raises what the run would raise.
    """
    task, first = build_task(setup.config, setup.device), next(build_batches(setup.config, setup.device), None)
    if first is None:
        return rehearsed(setup, [Effect()])
    effects = []
    for number in range(len(setup.phases)):
        if number:
            begin_phase(setup, number)
        setup.model.train()
        effects.append(effect_of_a_batch(setup.model, setup.parameters, task, first.batch))
    return rehearsed(setup, effects)


def show_plan(config: Config, console: Console) -> None:
    """Print every parameter with its shape, group, learning rate and whether it is declared frozen, then the hazards."""

    def note(text: str, *, urgent: bool = False) -> None:
        console.print(f"note: {escape(text)}")

    try:
        with assembled(config, note) as setup:
            console.print(_parameters(setup))
            modules = len(setup.selection.modules)
            console.print(
                f"{len(setup.selection.parameters)} of {len(setup.parameters)} parameters would be frozen, "
                f"{modules} modules held in eval mode; nothing was trained or written."
            )
            try:
                foreseen = foresee(setup)
            except SkippedError as skipped:  # by an optimizer that does not step dummies, as it may not step the real ones
                console.print(f"hazards cannot be foreseen: {escape(str(skipped))}")
                return
            owners = {name: entry.owner for name, entry in setup.before.entries.items()}
            hazards = [
                *leaks(foreseen, *labels(setup)),
                *drifts(foreseen, list(setup.selection.parameters), owners),
                *idles(foreseen),
            ]
            for hazard in hazards:
                console.print(f"[yellow]hazard:[/] {escape(hazard)}")
            if not hazards:
                console.print("no hazard is foreseen: by this batch, what is frozen would hold and the rest would train")
    except SkippedError as skipped:
        raise ConfigError(f"skipped: {skipped}") from skipped


def _parameters(setup: Setup) -> Table:
    group_of, resolve = placed([setup.optimizer]), now(entries(setup.model))
    table = Table("parameter", "shape", "group", "lr", "requires_grad", "frozen", box=None, pad_edge=False)
    first = setup.phases[-1].first
    for entry in (entry for entry in setup.before.entries.values() if entry.kind == "parameter"):
        name, group = group_of.get(id(entry.tensor), ("(none)", None))
        tensor = resolve(entry)
        table.add_row(
            " = ".join([entry.name, *entry.aliases]),
            "x".join(map(str, entry.tensor.shape)),
            name,
            str(rate(group)) if group else "",
            str(tensor is not None and tensor.requires_grad),
            "" if entry.tensor not in setup.selection else "frozen" if first == 1 else f"from step {first} on",
        )
    return table

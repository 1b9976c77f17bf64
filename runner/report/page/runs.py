"""The runs, a row for each: how they were configured, how they ended, what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from runner.contract import VERDICTS
from runner.display.units import in_digits
from runner.report.compare.costs import COST_TEXTS, costs_by_run
from runner.report.compare.equivalence import compare_trained_parts
from runner.report.compare.grouping import overrides_by_key, swept_keys
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, outcome_cell, table_section
from runner.runs.read import Run
from runner.runs.text import MAX_CELL, shortened

MAX_TABLE_ROWS = 1000


def runs_section(run_set: RunSet) -> Section | None:
    """Return the section with a row for each run."""
    return table_section("The run" if run_set.single else "The runs", runs_table(run_set.runs))


def runs_table(runs: Sequence[Run]) -> PageTable:
    """Return a table with a row per run: how the run was configured, and how it ended.

    Columns: the run's label; a column for each command-line override that is not the same in all runs; the outcome; the
    number of tensors with each verdict (`held`, `leaked`, ...); the first and the last loss; whether the trainable
    parameters end with the same bits as under `requires_grad`; the costs of a training step. At most MAX_TABLE_ROWS runs are
    shown.
    """
    keys, trained_parts = swept_keys(runs), compare_trained_parts({run.label: run.record for run in runs})
    verdicts = [verdict for verdict in VERDICTS if any(run.record["counts"][verdict] for run in runs)]
    costs = costs_by_run(runs)
    cost_columns = [(name, text_of) for name, text_of in COST_TEXTS.items() if any(map(text_of, costs.values()))]
    has_trained_part = any(word for word, _ in trained_parts.values())
    columns = [Column("run"), *map(Column, keys), Column("outcome"), *(Column(verdict, True) for verdict in verdicts)]
    columns += [Column("first loss", True), Column("last loss", True)]
    measured = dict.fromkeys(key for run in runs for key in run.held_out)
    columns += [Column(f"held-out {key}", True) for key in measured]
    columns += [Column("trained_part")] if has_trained_part else []
    columns += [Column(name, True) for name, _ in cost_columns]
    rows, picked = [], pick_runs(runs)
    for run in picked:
        record, overrides = run.record, overrides_by_key(run)
        row = [
            TableCell(run.label),
            *(TableCell(shortened(overrides.get(key, ""), MAX_CELL)) for key in keys),
            outcome_cell(run.outcome),
        ]
        row += [TableCell(str(record["counts"][verdict])) for verdict in verdicts]
        row += [TableCell(_loss_text(run, loss)) for loss in (record["loss_first"], record["loss_last"])]
        row += [TableCell(in_digits(run.held_out.get(key))) for key in measured]
        row += [TableCell(": ".join(filter(None, trained_parts[run.label])), "why")] if has_trained_part else []
        rows.append(row + [TableCell(text_of(costs[run.label])) for _, text_of in cost_columns])
    caption = (
        f"{'How the runs differ' if len(runs) > 1 else 'The settings'}, the outcome, and how many tensors have each verdict"
    )
    if len(picked) < len(runs):
        caption += f"; {len(picked):,} of {len(runs):,} runs, those that did not hold before the others"
    return PageTable("runs", caption, columns, rows)


def pick_runs(runs: Sequence[Run]) -> list[Run]:
    """Return at most MAX_TABLE_ROWS runs, in the given order.

    If there are more, the first to be left out are runs whose frozen tensors all kept their bits.
    """
    if len(runs) <= MAX_TABLE_ROWS:
        return list(runs)
    picked = {run.label for run in sorted(runs, key=lambda run: run.outcome == "held")[:MAX_TABLE_ROWS]}
    return [run for run in runs if run.label in picked]


def _loss_text(run: Run, loss: float | None) -> str:
    """Return a loss as a text with four significant digits.

    If `loss` is None, the text is `not finite` for a run that made steps, and empty for a run that made none.
    """
    if loss is not None:
        return in_digits(loss)
    return "not finite" if run.record["looks"] else ""

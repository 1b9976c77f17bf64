"""The runs, a row for each: how they were configured, how they ended, what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from runner.contract import Verdict
from runner.display.units import digits_text, percent_text
from runner.report.answer.learning import ROSE
from runner.report.compare.costs import trains_everything
from runner.report.compare.grouping import overrides_by_key, swept_keys
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Column, PageTable, Section, TableCell, outcome_cell, table_section, value_cell
from runner.runs.headline import loss_rose
from runner.runs.read import Run

MAX_TABLE_ROWS = 1000
SHOWN_VERDICTS: tuple[Verdict, ...] = ("held", "returned", "leaked", "trained", "idle")  # those of live buffers are not


def runs_section(run_set: RunSet) -> Section | None:
    """Return the section with a row for each run; for one run its costs and counts stand in other sections: None."""
    return None if run_set.single else table_section("The runs", runs_table(run_set))


def runs_table(run_set: RunSet) -> PageTable:
    """Return a table with a row per run: how the run was configured, and how it ended. Runs of a setting stand together.

    Columns: the run's label; a column for each command-line override that is not the same in all runs; the outcome; the
    number of tensors with each verdict (`held`, `leaked`, ...); the last loss; whether the trainable
    parameters end with the same bits as under `requires_grad`; the FLOPs of a step. At most MAX_TABLE_ROWS runs are
    shown. The first row of each setting has the id `setting-N`, where N is its place in `run_set.settings`.
    """
    runs, keys, costs = run_set.runs, swept_keys(run_set.runs), run_set.costs
    verdicts = [verdict for verdict in SHOWN_VERDICTS if any(run.record["counts"][verdict] for run in runs)]
    shares = {run.label: costs[run.label].get("flops_share") for run in runs}
    has_shares = any(share is not None for share in shares.values())
    has_trained_part = any(word for word, _ in run_set.trained_parts.values())
    measured = dict.fromkeys(key for run in runs for key in run.held_out)
    columns = [Column("run"), *map(Column, keys), Column("outcome"), *(Column(verdict, True) for verdict in verdicts)]
    columns += [Column("last loss", True)]
    columns += [Column(f"held-out {key}", True) for key in measured]
    columns += [Column("trained part, against requires_grad")] if has_trained_part else []
    columns += [Column("FLOPs, of training everything", True)] if has_shares else []
    picked = {run.label for run in pick_runs(runs)}
    rows, ids = [], []
    for number, setting in enumerate(run_set.settings):
        for run in (run for run in setting.runs if run.label in picked):
            ids.append(f"setting-{number}" if run is setting.runs[0] else "")
            values = [value_cell(key, overrides_by_key(run).get(key)) for key in keys]
            row = [TableCell(run.label, link=run_set.link(run)), *values, _outcome_cell(run)]
            row += [TableCell(str(run.record["counts"][verdict])) for verdict in verdicts]
            row.append(_loss_cell(run))
            row += [TableCell(digits_text(run.held_out.get(key))) for key in measured]
            trained_part = ": ".join(filter(None, run_set.trained_parts[run.label]))
            row += [TableCell(trained_part, "why")] if has_trained_part else []
            share = shares[run.label]
            rows.append(row + ([TableCell(percent_text(share), sort=share)] if has_shares else []))
    return PageTable("runs", _caption(runs, len(rows)), columns, rows, ids)


def _caption(runs: Sequence[Run], shown: int) -> str:
    """Return the caption of the table; `shown`: how many of the runs have a row."""
    caption = "How the runs differ, the outcome, and how many tensors have each verdict"
    if any(run.finished and loss_rose(run.record) for run in runs):
        caption += f"; {ROSE} rose: the training losses of the last quarter are above those of the first"
    if shown < len(runs):
        caption += f"; {shown:,} of {len(runs):,} runs, those that did not hold before the others"
    return caption


def pick_runs(runs: Sequence[Run]) -> list[Run]:
    """Return at most MAX_TABLE_ROWS runs, in the given order.

    If there are more, the first to be left out are runs whose frozen tensors all kept their bits.
    """
    if len(runs) <= MAX_TABLE_ROWS:
        return list(runs)
    picked = {run.label for run in sorted(runs, key=lambda run: run.outcome == "held")[:MAX_TABLE_ROWS]}
    return [run for run in runs if run.label in picked]


def _outcome_cell(run: Run) -> TableCell:
    """Return a cell with the outcome of a run; under `method=none` a leak is by design, and the run is the baseline."""
    by_design = trains_everything(run) and run.outcome == "leaked"
    return TableCell("baseline", "quiet") if by_design else outcome_cell(run.outcome)


def _loss_cell(run: Run) -> TableCell:
    """Return a cell with the last loss, marked where the loss rose: `2.4 ↑ rose`.

    Without a loss its text is `not finite` for a run that made steps, and empty for one that made none.
    """
    loss = run.record["loss_last"]
    if loss is None:
        return TableCell("not finite" if run.record["looks"] else "")
    rose = run.finished and loss_rose(run.record)
    return TableCell(digits_text(loss) + (f" {ROSE} rose" if rose else ""), "idle" if rose else "", sort=loss)

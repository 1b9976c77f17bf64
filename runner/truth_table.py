"""Every method x optimizer x weight decay x scheduler x moment x gradients on a small model: `python -m runner.truth_table`.

Each cell is a run of the straight line, in this process, composed once; and beside its outcome stands what a plan foresaw.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.progress import track

from runner.config.check import check
from runner.config.compose import composed
from runner.config.schema import CONF, Config
from runner.contract import EXIT_DONE, Row
from runner.errors import SkippedError
from runner.report.truth_page import TRUTH_COLUMNS, write_truth_table
from runner.runs.console import create_console

if TYPE_CHECKING:
    from runner.experiment import Outcome

BASE = ("model=token_mlp", "freeze=backbone", "batches=5", "threads=1", "device=cpu", "data.batch_size=8", "cost=off")
FREEZE_AT = 3
VARIANTS = {"requires_grad clean": {"clean": True}, "zero_lr guard": {"guard": True}}
GROUPS: dict[str, dict[str, Any]] = {  # how an optimizer that does not take every group is served
    "lbfgs": {"cut": {"_target_": "runner.freezing.groups.all_in_one"}},
    "muon": {"cut": {"_target_": "runner.freezing.groups.by_module", "names": [r"re:(embed|there|head)\.weight"]}},
}
FEWER = {"lbfgs": {"max_iter": 3}}  # of the steps within a step, each of which is a batch


@dataclass(frozen=True)
class Cell:
    """One run; `weight_decay` is None for an optimizer that has none."""

    method: str
    optimizer: str
    weight_decay: float | None
    frozen_from: int
    gradients: str
    scheduler: str


@dataclass(frozen=True)
class CaseResult:
    """How a cell ended: `held`, `returned`, `leaked` or `skipped`; the causes; a digest of the rest; the plan's word."""

    outcome: str
    causes: str = ""
    digest: str = ""
    foreseen: str = ""
    reason: str = ""


def names(noun: str) -> list[str]:
    """The choices of a noun, but for the one to fill in."""
    return sorted(path.stem for path in (CONF / noun).glob("*.yaml") if path.stem != "custom")


def grid() -> Iterator[Cell]:
    """Every cell, `requires_grad` first, against which the others' rest is held."""
    methods = sorted([*names("method"), *VARIANTS], key=lambda name: (name != "requires_grad", name))
    for optimizer in names("optimizer"):
        decays = (0.0, 0.1) if "weight_decay" in node("optimizer", optimizer) else (None,)
        settings = product(decays, (1, FREEZE_AT), ("none", "zeros"), names("scheduler"))
        for (decay, first, gradients, scheduler), method in product(settings, methods):
            yield Cell(
                method=method,
                optimizer=optimizer,
                weight_decay=decay,
                frozen_from=first,
                gradients=gradients,
                scheduler=scheduler,
            )


def became(cell: Cell) -> CaseResult:
    """Foresee and run one cell."""
    from runner.assemble import assembled
    from runner.experiment import experiment
    from runner.foresight.plan import foresee

    config = configured(cell)
    try:
        with assembled(config) as setup:
            rehearsal = foresee(setup)
        outcome = experiment(config)
    except SkippedError as skipped:
        return CaseResult("skipped", reason=str(skipped))
    frozen = [row for row in outcome.rows if row["frozen"]]
    words = {row["verdict"] for row in frozen}
    return CaseResult(
        outcome=next(word for word in ("leaked", "returned", "held") if word in words),
        causes="; ".join(sorted({row["cause"] for row in frozen if row["verdict"] == "leaked"})),
        digest=outcome.figures["trained_digest"] or "",
        foreseen=compared(rehearsal.rows, outcome),
    )


def compared(foreseen: Sequence[Row], outcome: Outcome) -> str:
    """`yes` where a plan foresaw verdict and cause of all that is frozen and of every buffer, else the first difference."""
    was = {row["name"]: (row["verdict"], row["cause"]) for row in foreseen}
    for row in outcome.rows:
        told, came = was[row["name"]], (row["verdict"], row["cause"])
        if (row["frozen"] or row["kind"] == "buffer") and told != came:
            return f"{row['name']}: foreseen {' '.join(told)}, came {' '.join(came)}"
    return "yes"


def configured(cell: Cell) -> Config:
    """The config of a cell, put together without composing."""
    method = cell.method.partition(" ")[0]
    optimizer = {**node("optimizer", cell.optimizer), **FEWER.get(cell.optimizer, {})}
    if cell.weight_decay is not None:
        optimizer = {**optimizer, "weight_decay": cell.weight_decay}
    schedule = {"_target_": "runner.freezing.schedule.after", "step": cell.frozen_from}
    config = replace(
        base(),
        method={**node("method", method), **VARIANTS.get(cell.method, {})},
        optimizer=optimizer,
        scheduler=node("scheduler", cell.scheduler, cell.optimizer),
        schedule=schedule,
        zero_grad_to_none=cell.gradients == "none",
    )
    return replace(config, groups=replace(config.groups, **GROUPS.get(cell.optimizer, {})))


@lru_cache(maxsize=1)
def base() -> Config:
    """What all cells have in common."""
    return check(composed(*BASE))


@lru_cache(maxsize=1000)
def node(noun: str, name: str, optimizer: str = "") -> dict[str, Any]:
    """One file of the config, with what it refers to put in."""
    around = {"batches": base().batches, "model": {"input": base().model.input}}
    if optimizer:
        around["optimizer"] = node("optimizer", optimizer)
    whole = OmegaConf.create({**around, "node": OmegaConf.load(CONF / noun / f"{name}.yaml")})
    return OmegaConf.to_container(whole, resolve=True)["node"]  # type: ignore[call-overload,index,return-value]


def rows(cells: Sequence[Cell], ends: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """A row for each distinct outcome of a method, optimizer, decay, moment and kind of gradient, with its schedulers."""
    baselines = {replace(cell, method=""): end for cell, end in zip(cells, ends, strict=True) if is_baseline(cell)}
    found: dict[tuple[Any, ...], list[str]] = {}
    for cell, end in zip(cells, ends, strict=True):
        baseline = baselines[replace(cell, method="")]
        comparable = "skipped" not in (end.outcome, baseline.outcome) and baseline.outcome != "leaked"
        rest = "" if not comparable else "identical" if end.digest == baseline.digest else "differs"
        setting = (cell.method, cell.optimizer, cell.weight_decay, cell.frozen_from, cell.gradients)
        found.setdefault((*setting, end.outcome, end.causes, rest, end.foreseen, end.reason), []).append(cell.scheduler)
    order = list(dict.fromkeys(cell.method for cell in cells))
    return [
        dict(zip(TRUTH_COLUMNS, (*told[:5], "|".join(sorted(schedulers)), len(schedulers), *told[5:]), strict=True))
        for told, schedulers in sorted(found.items(), key=lambda row: (order.index(row[0][0]), row[0][1]))
    ]


def is_baseline(cell: Cell) -> bool:
    """Whether the rest of other methods is held against this one's."""
    return cell.method == "requires_grad"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the whole grid and write both files."""
    parser = argparse.ArgumentParser(prog="python -m runner.truth_table", description=__doc__.splitlines()[0])
    parser.add_argument("-o", metavar="FOLDER", type=Path, default=Path("docs"), help="where to write (docs)")
    folder = parser.parse_args(arguments).o
    import torch  # here, for `--help` should not wait for it

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's, of schedulers that are stepped before an optimizer that is skipped
    cells = list(grid())
    gc.freeze()  # what was imported is there to stay; looking through it after every few runs takes a third of the time
    ends = [became(cell) for cell in track(cells, "runs", console=create_console(), disable=not sys.stdout.isatty())]
    table = rows(cells, ends)
    write_truth_table(table, folder, torch.__version__.partition("+")[0])
    print(f"{len(cells)} runs, {len(table)} distinct outcomes: {folder / 'truth_table.md'}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""Run every method with every optimizer, scheduler and setting on a small model: `python -m runner.truth_table`.

All runs are in this process, and Hydra composes a config only once, to save time. The table has one row for each distinct
result, with the schedulers that lead to it, and says whether a plan (a prediction made before the training) agrees with it.
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
from runner.config.compose import compose_config
from runner.config.schema import CONF, Config
from runner.contract import EXIT_DONE, Row
from runner.display.console import create_console
from runner.errors import SkippedError
from runner.report.truth_page import TRUTH_COLUMNS, write_truth_table

if TYPE_CHECKING:
    from runner.experiment import Outcome

BASE = ("model=token_mlp", "freeze=backbone", "batches=5", "threads=1", "device=cpu", "data.batch_size=8", "cost=off")
SCHEDULES: dict[str, dict[str, Any]] = {  # by the first frozen steps
    "1": {"_target_": "runner.freezing.schedule.constant"},
    "3": {"_target_": "runner.freezing.schedule.after", "step": 3},
    "1|4": {
        "_target_": "runner.freezing.schedule.explicit",
        "phases": [{"at": 2, "thaw": ["**"]}, {"at": 4, "freeze": ["**"]}],
    },
}
TWICE = "1|4"
NOT_TWICE = ("chained", "constant", "linear", "multi_step", "multiplicative", "plateau", "polynomial")
"""Schedulers with which nothing is frozen twice, to save time: like `step` and `cosine`, they never raise a rate from 0."""
VARIANTS = {"requires_grad clean": {"clean": True}, "zero_lr guard": {"guard": True}}  # methods with options
GROUPS: dict[str, dict[str, Any]] = {  # for optimizers that do not accept the default groups
    "lbfgs": {"cut": {"_target_": "runner.freezing.groups.all_in_one"}},
    "muon": {"cut": {"_target_": "runner.freezing.groups.by_module", "names": [r"re:(embed|there|head)\.weight"]}},
}
FEWER_ITERATIONS = {"lbfgs": {"max_iter": 3}}  # to save time: each iteration within a step computes the loss


@dataclass(frozen=True)
class Case:
    """The settings of one run of the truth table.

    Attributes:
        method: a choice of the config group `method`, or a key of VARIANTS, such as `zero_lr guard`.
        optimizer: a choice of the config group `optimizer`.
        weight_decay: the optimizer's weight decay; None if it has no such option.
        frozen_from: the first step with frozen parameters, counted from 1; `1|4` if they are thawed and frozen again.
        gradients: what `zero_grad` sets gradients to, `none` or `zeros`.
        scheduler: a choice of the config group `scheduler`.
    """

    method: str
    optimizer: str
    weight_decay: float | None
    frozen_from: str
    gradients: str
    scheduler: str


@dataclass(frozen=True)
class CaseResult:
    """The result of one run of the truth table.

    Attributes:
        outcome: `held` (no bit of a frozen tensor changed), `returned` (some changed, but had their initial value again at
            the end), `leaked` (some differed at the end), or `skipped` (the method does not work with this optimizer).
        causes: why frozen tensors leaked, each cause once, joined by `; `.
        digest: a sha256 of all parameters that were not frozen, to compare how methods trained them.
        foreseen: `yes` if the prediction made before the training was right, otherwise the first tensor where it was wrong.
        reason: why the run was skipped.
    """

    outcome: str
    causes: str = ""
    digest: str = ""
    foreseen: str = ""
    reason: str = ""


def choices(group: str) -> list[str]:
    """Return the names of the choices of a config group (the files in `conf/GROUP`), sorted, except `custom`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "custom")


def all_cases() -> Iterator[Case]:
    """Yield all combinations of method, optimizer, weight decay, step at which freezing begins, `set_to_none`, scheduler.

    With the schedulers of NOT_TWICE, nothing is frozen twice. Cases that differ only in their method follow one another. The
    first of them has the method `requires_grad`, with which the others are compared.
    """
    methods = sorted([*choices("method"), *VARIANTS], key=lambda name: (name != "requires_grad", name))
    for optimizer in choices("optimizer"):
        decays = (0.0, 0.1) if "weight_decay" in config_node("optimizer", optimizer) else (None,)
        settings = product(decays, SCHEDULES, ("none", "zeros"), choices("scheduler"))
        for (weight_decay, frozen_from, gradients, scheduler), method in product(settings, methods):
            if frozen_from == TWICE and scheduler in NOT_TWICE:
                continue
            yield Case(
                method=method,
                optimizer=optimizer,
                weight_decay=weight_decay,
                frozen_from=frozen_from,
                gradients=gradients,
                scheduler=scheduler,
            )


def run_case(case: Case) -> CaseResult:
    """Predict the verdict and cause of each tensor from one batch, then train, and return what happened.

    In the result, `foreseen` says whether the prediction was right. The result is `skipped`, without training, if the
    freezing method does not work with the model or optimizer.
    """
    from runner.assemble.setup import assembled
    from runner.experiment import experiment
    from runner.foresight.plan import foresee_run

    config = config_of(case)
    try:
        with assembled(config) as setup:
            rehearsal = foresee_run(setup)
        outcome = experiment(config)
    except SkippedError as skipped:
        return CaseResult("skipped", reason=str(skipped))
    frozen = [row for row in outcome.rows if row["frozen"]]
    verdicts = {row["verdict"] for row in frozen}
    return CaseResult(
        outcome=next(verdict for verdict in ("leaked", "returned", "held") if verdict in verdicts),
        causes="; ".join(sorted({row["cause"] for row in frozen if row["verdict"] == "leaked"})),
        digest=outcome.record["trained_digest"] or "",
        foreseen=compare_with_plan(rehearsal.rows, outcome),
    )


def compare_with_plan(predicted_rows: Sequence[Row], outcome: Outcome) -> str:
    """Compare the verdicts and causes predicted before the training with those of the run.

    Returns `yes` if they agree for all frozen parameters and all buffers; otherwise a sentence about the first difference.
    """
    predictions = {row["name"]: (row["verdict"], row["cause"]) for row in predicted_rows}
    for row in outcome.rows:
        predicted, actual = predictions[row["name"]], (row["verdict"], row["cause"])
        if (row["frozen"] or row["kind"] == "buffer") and predicted != actual:
            return f"{row['name']}: foreseen {' '.join(predicted)}, was {' '.join(actual)}"
    return "yes"


def config_of(case: Case) -> Config:
    """Return the config of a case: a copy of `base_config()` with the case's settings, made without Hydra to save time."""
    method = case.method.partition(" ")[0]
    optimizer = {**config_node("optimizer", case.optimizer), **FEWER_ITERATIONS.get(case.optimizer, {})}
    if case.weight_decay is not None:
        optimizer = {**optimizer, "weight_decay": case.weight_decay}
    config = replace(
        base_config(),
        method={**config_node("method", method), **VARIANTS.get(case.method, {})},
        optimizer=optimizer,
        scheduler=config_node("scheduler", case.scheduler, case.optimizer),
        schedule=SCHEDULES[case.frozen_from],
        zero_grad_to_none=case.gradients == "none",
    )
    return replace(config, groups=replace(config.groups, **GROUPS.get(case.optimizer, {})))


@lru_cache(maxsize=1)
def base_config() -> Config:
    """Return the checked config with the settings that all cases have in common (BASE).

    Hydra composes it at the first call; later calls return the same object.
    """
    return check(compose_config(*BASE))


@lru_cache(maxsize=1000)
def config_node(group: str, name: str, optimizer: str = "") -> dict[str, Any]:
    """Return the content of `conf/GROUP/NAME.yaml` as a dict, with values in place of interpolations like `${batches}`.

    `optimizer`: the choice of the config group `optimizer` that gives the values of interpolations like `${optimizer.lr}`;
    "" if the file has no such interpolations.
    """
    context: dict[str, Any] = {"batches": base_config().batches}
    if optimizer:
        context["optimizer"] = config_node("optimizer", optimizer)
    whole = OmegaConf.create({**context, "node": OmegaConf.load(CONF / group / f"{name}.yaml")})
    return OmegaConf.to_container(whole, resolve=True)["node"]  # type: ignore[call-overload,index,return-value]


def table_rows(cases: Sequence[Case], results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """Return the rows of the table as dicts with the keys TRUTH_COLUMNS.

    `results`: the result of each case, in the same order. Cases that differ only in their scheduler and have the same result
    share a row, which lists their schedulers. The column `trained_part` says whether the parameters that were not frozen
    have the same bits at the end as in the case with the method `requires_grad`.
    """
    baselines = {replace(case, method=""): result for case, result in zip(cases, results, strict=True) if is_baseline(case)}
    schedulers: dict[tuple[Any, ...], list[str]] = {}  # by all other values of the row
    for case, result in zip(cases, results, strict=True):
        baseline = baselines[replace(case, method="")]
        comparable = "skipped" not in (result.outcome, baseline.outcome) and baseline.outcome != "leaked"
        trained_part = "" if not comparable else "identical" if result.digest == baseline.digest else "differs"
        setting = (case.method, case.optimizer, case.weight_decay, case.frozen_from, case.gradients)
        values = (*setting, result.outcome, result.causes, trained_part, result.foreseen, result.reason)
        schedulers.setdefault(values, []).append(case.scheduler)
    order = list(dict.fromkeys(case.method for case in cases))
    return [
        dict(zip(TRUTH_COLUMNS, (*values[:5], "|".join(sorted(names)), len(names), *values[5:]), strict=True))
        for values, names in sorted(schedulers.items(), key=lambda row: (order.index(row[0][0]), row[0][1]))
    ]


def is_baseline(case: Case) -> bool:
    """Return whether the case has the method `requires_grad`, with which the other methods are compared."""
    return case.method == "requires_grad"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases, write the table as CSV and as Markdown into the folder of option `-o`, and return the exit code.

    `arguments`: the command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m runner.truth_table", description=__doc__.splitlines()[0])
    parser.add_argument("-o", metavar="FOLDER", type=Path, default=Path("docs"), help="where to write (docs)")
    folder = parser.parse_args(arguments).o
    import torch  # not at the top, because `--help` should not wait for it

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch warns if a scheduler steps before the optimizer
    cases = list(all_cases())
    gc.freeze()  # the garbage collector would otherwise spend a third of the time on imported modules
    results = [run_case(case) for case in track(cases, "runs", console=create_console(), disable=not sys.stdout.isatty())]
    rows = table_rows(cases, results)
    write_truth_table(rows, folder, torch.__version__.partition("+")[0])
    print(f"{len(cases)} runs, {len(rows)} distinct outcomes: {folder / 'truth_table.md'}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

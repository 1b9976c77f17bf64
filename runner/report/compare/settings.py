"""A setting is all that a run was told but the seed: its runs are repeats of one experiment, and averaged over as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from runner.contract import DEFECTS, Cost
from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.compare.costs import total_flops, trains_everything
from runner.report.compare.grouping import group_by_method, overrides_by_key, swept_keys
from runner.runs.read import Run

OUTCOMES = ("leaked", *DEFECTS, "failed", "interrupted", "running", "skipped", "finished", "held")  # the worst first


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in the seed.

    Attributes:
        method: the name of the freezing method, such as `zero_lr`, with its options where they differ between runs.
        frozen_set: what is declared frozen: the value of `freeze`, or its patterns.
        context: all else in which settings differ, such as `optimizer=adam lr=0.1`; mostly empty.
        runs: the runs, in the order of the report.
        name: what tells the setting from the others of the report, such as `zero_lr fc`.
        cost: the costs of a step, with the shares of training everything: the mean over the finished runs, which mostly are
            the same; what is not known of each of them is missing.
    """

    method: str
    frozen_set: str
    context: str
    runs: tuple[Run, ...]
    name: str
    cost: Cost

    @property
    def outcome(self) -> str:
        """The worst outcome of the runs, as OUTCOMES lists them; one that leaked before it was interrupted leaked."""
        found = {"leaked" if run.leaked else run.outcome for run in self.runs}
        return next((outcome for outcome in OUTCOMES if outcome in found), "finished")

    @property
    def finished(self) -> list[Run]:
        """The runs that finished."""
        return [run for run in self.runs if run.finished]

    @property
    def held(self) -> list[Run]:
        """The runs that are evidence: they finished without a defect, and every frozen bit held."""
        return [run for run in self.runs if run.outcome == "held"]

    @property
    def held_in_all_finished(self) -> bool:
        """Whether it held in each run that finished, in at least one, and leaked in none."""
        return bool(self.held) and len(self.held) == len(self.finished) and not any(run.leaked for run in self.runs)

    @property
    def one_per_seed(self) -> list[Run]:
        """The first finished run of each seed: a run that was repeated is no second seed, and tells nothing of a spread."""
        seeds = {run.label if run.record["seed"] is None else run.record["seed"]: run for run in reversed(self.finished)}
        return list(reversed(seeds.values()))

    @property
    def accuracies(self) -> list[float]:
        """The accuracy on held-out data after the training, for each seed that has one."""
        return [value for run in self.one_per_seed if (value := run.held_out.get("accuracy")) is not None]

    @property
    def losses(self) -> list[float]:
        """The last training loss for each seed, where it is finite and was so at every step."""
        kept = (run for run in self.one_per_seed if run.record["loss_not_finite_at"] is None)
        return [value for run in kept if (value := run.record["loss_last"]) is not None]

    @property
    def flops(self) -> float | None:
        """The FLOPs of a step, forward and backward; None if they are not known."""
        return total_flops(self.cost)

    @property
    def trains_everything(self) -> bool:
        """Whether its method is `none`, under which what is declared frozen leaks by design."""
        return trains_everything(self.runs[0])

    @property
    def is_sound(self) -> bool:
        """Whether it may be recommended: each run held, or trained everything as declared, and has no defect."""
        if self.trains_everything:
            return all(run.finished and not defects_of(run.record) for run in self.runs)
        return all(run.outcome == "held" for run in self.runs)


def build_settings(runs: Sequence[Run], costs: dict[str, Cost]) -> list[Setting]:
    """Return the settings of the runs, in the order in which their first runs stand in `runs`.

    A run without any override besides the seed is a setting of its own. `costs`: {run label: its costs}, as `costs_by_run`
    returns them.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        values = sorted(f"{key}={value}" for key, value in overrides_by_key(run).items() if key != "seed")
        groups.setdefault(tuple(values) or ("", run.label), []).append(run)
    methods = {run.label: method for method, members in group_by_method(runs).items() for run in members}
    keys = [key for key in swept_keys(runs) if key != "seed"]
    frozen_sets = {id(members): frozen_set_of(members[0], keys) for members in groups.values()}
    several_sets = len(set(frozen_sets.values())) > 1
    settings = []
    for members in groups.values():
        first, frozen_set = members[0], frozen_sets[id(members)]
        context = _context_of(first, keys) if len(runs) > 1 else ""
        name = " ".join(filter(None, (methods[first.label], frozen_set if several_sets else "", context)))
        cost = mean_cost([costs[run.label] for run in members if run.finished])
        settings.append(
            Setting(
                method=methods[first.label],
                frozen_set=frozen_set,
                context=context,
                runs=tuple(members),
                name=name,
                cost=cost,
            )
        )
    return settings


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean of each cost that is known in all of `costs`; a text, such as a reason, where all have the same."""
    mean: Cost = {}
    for key in costs[0] if costs else ():
        values = [cost[key] for cost in costs if cost.get(key) is not None]
        if len(values) < len(costs):
            continue
        if len(set(values)) == 1:
            mean[key] = values[0]
        elif not any(isinstance(value, str) for value in values):
            mean[key] = fmean(values)
    return mean


def frozen_set_of(run: Run, keys: Sequence[str] = ()) -> str:
    """Return what a run declares frozen as a text: the choice of `freeze`, else its patterns, and the options in `keys`.

    `keys`: the override keys whose values differ between runs.
    """
    values = {key.lstrip("+"): value for key, value in overrides_by_key(run).items()}
    patterns = values.get("freeze.patterns", "")
    if not (base := patterns.strip("[]") or values.get("freeze", "")):
        patterns, kept = run.config.get("freeze.patterns", ""), run.config.get("freeze.keep", "")
        base = f"{patterns} without {kept}" if kept not in ("", "[]") else patterns
    options = [
        f"{key.lstrip('+').removeprefix('freeze.')}={values[key.lstrip('+')]}"
        for key in keys
        if key.lstrip("+").startswith("freeze.") and key.lstrip("+") != "freeze.patterns" and key.lstrip("+") in values
    ]
    return " ".join(filter(None, (base, *options))) or "not recorded"


def _context_of(run: Run, keys: Sequence[str]) -> str:
    """Return a run's values of those override keys in `keys` that choose neither the method nor what is frozen."""
    values = overrides_by_key(run)
    others = [key for key in keys if key.lstrip("+~").split(".")[0] not in ("method", "freeze") and key in values]
    return " ".join(f"{key.lstrip('+')}={values[key]}" for key in others)


def names_of(settings: Sequence[Setting], most: int = 4) -> str:
    """Return the names of settings as part of a sentence, such as `zero_lr fc, exclude fc and 3 more`."""
    return listed([setting.name for setting in settings], most=most)

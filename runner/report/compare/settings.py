"""A setting is all that a run was told but the seed: its runs are repeats of one experiment, and averaged over as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, TypeAlias

from runner.contract import DEFECTS, Cost, is_hashed
from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.compare.costs import total_flops, trains_everything
from runner.report.compare.equivalence import is_requires_grad
from runner.report.compare.grouping import group_by_method, overrides_by_key, swept_keys
from runner.report.compare.methods import has_frozen, trains_something
from runner.runs.read import Run

OUTCOMES = ("leaked", *DEFECTS, "failed", "interrupted", "running", "skipped", "finished", "held")  # the worst first
BASELINE, NOTHING, ALL = "baseline", "nothing frozen", "all frozen"  # see `no_evidence`
WHAT_IS_FROZEN = ("freeze", "freeze.patterns", "freeze.keep")  # keys; the others of `freeze` say how
MAX_DIFFERENCES = 3  # that are named where two settings would have the same name

Told: TypeAlias = "frozenset[tuple[str, str]]"
"""Pairs (dotted config key, value as text)."""


class Place(NamedTuple):
    """What runs were told besides the method: what is frozen, and all else but the seed. Costs are compared within one."""

    frozen: Told
    context: Told


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in the seed.

    Attributes:
        method: the name of the freezing method, such as `zero_lr`, with its options where they differ between runs.
        frozen_set: what is declared frozen: the value of `freeze`, or its patterns.
        context: all else in which settings differ, such as `optimizer=adam lr=0.1`; mostly empty.
        place: what is frozen and the context, as the composed config says; two settings with the same one differ in the
            method alone.
        runs: the runs, in the order of the report.
        name: what tells the setting from the others of the report, such as `zero_lr fc`.
        cost: the costs of a step, with the shares of training everything: the mean over the finished runs, which mostly are
            the same; what is not known of each of them is missing.
    """

    method: str
    frozen_set: str
    context: str
    place: Place
    runs: tuple[Run, ...]
    name: str
    cost: Cost

    @property
    def outcome(self) -> str:
        """The worst outcome of the runs, as OUTCOMES lists them; one that leaked before it was interrupted leaked.

        Under `none` what is declared frozen leaks by design, so that a defect is worse.
        """
        by_design = trains_everything(self.runs[0])
        found = {self._outcome_of(run, by_design) for run in self.runs}
        return next((outcome for outcome in OUTCOMES if outcome in found), "finished")

    @staticmethod
    def _outcome_of(run: Run, by_design: bool) -> str:
        """Return how a run ended; `by_design`: whether a leak is one."""
        if by_design and run.finished:
            return next(iter(defects_of(run.record)), run.outcome)
        return "leaked" if run.leaked else run.outcome

    @property
    def with_outcome(self) -> list[Run]:
        """The runs that ended as `outcome` says."""
        by_design, outcome = trains_everything(self.runs[0]), self.outcome
        return [run for run in self.runs if self._outcome_of(run, by_design) == outcome]

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
        """Whether it is a baseline: nothing is declared frozen, or its method is `none`, which lets it leak."""
        return trains_everything(self.runs[0]) or (bool(self.finished) and not any(map(has_frozen, self.finished)))

    @property
    def trains_nothing(self) -> bool:
        """Whether every parameter is frozen: each run that finished held, and trained none."""
        return bool(self.held) and all(run.outcome == "held" and not trains_something(run) for run in self.finished)

    @property
    def no_evidence(self) -> str:
        """Why the outcome says nothing about the method: `baseline`, `nothing frozen` or `all frozen`; mostly empty."""
        if self.outcome not in ("held", "leaked"):
            return ""
        if trains_everything(self.runs[0]):
            return BASELINE
        return NOTHING if self.trains_everything else ALL if self.trains_nothing else ""

    @property
    def is_sound(self) -> bool:
        """Whether it may be recommended: each run that finished held, or is a baseline; each trained, without a defect."""
        if self.trains_everything:
            return bool(self.finished) and not any(defects_of(run.record) for run in self.finished)
        return self.held_in_all_finished and all(map(trains_something, self.finished))

    @property
    def is_requires_grad(self) -> bool:
        """Whether its method is `requires_grad`, the one that other methods are compared with."""
        return is_requires_grad(self.runs[0])


def build_settings(runs: Sequence[Run], costs: dict[str, Cost]) -> list[Setting]:
    """Return the settings of the runs, in the order in which their first runs stand in `runs`.

    Runs are of one setting if their composed configs differ in the seed alone, however that was given on the command line.
    `costs`: {run label: its costs}, as `costs_by_run` returns them.
    """
    told = _told_by_label(runs)
    groups: dict[Told, list[Run]] = {}
    for run in runs:
        groups.setdefault(told[run.label], []).append(run)
    methods = {run.label: method for method, members in group_by_method(runs).items() for run in members}
    frozen_sets, contexts = _frozen_sets(groups), _contexts(groups, runs)
    several_sets = len(frozen_sets) > 1
    settings = []
    for key, members in groups.items():
        place, method = place_of(key), methods[members[0].label]
        frozen_set, context = frozen_sets[place.frozen], contexts[place.context]
        settings.append(
            Setting(
                method=method,
                frozen_set=frozen_set,
                context=context,
                place=place,
                runs=tuple(members),
                name=" ".join(filter(None, (method, frozen_set if several_sets else "", context))),
                cost=mean_cost([costs[run.label] for run in members if run.finished]),
            )
        )
    return settings


def place_of(told: Told) -> Place:
    """Return the two parts of what runs were told besides the method."""
    node_of = {item: item[0].split(".")[0] for item in told}
    frozen = frozenset(item for item, node in node_of.items() if node == "freeze")
    return Place(frozen, frozenset(item for item, node in node_of.items() if node not in ("freeze", "method")))


def _told_by_label(runs: Sequence[Run]) -> dict[str, Told]:
    """Return {run label: what the run was told but the seed, and what it ran on where the runs differ in that}.

    That is its composed config; where that cannot be read, that of a run with the same overrides, else its overrides.
    """
    given = {
        run.label: frozenset((key.lstrip("+~"), value) for key, value in overrides_by_key(run).items() if key != "seed")
        for run in runs
    }
    composed = {run.label: frozenset(_composed(run).items()) for run in runs if run.config}
    by_given = {given[label]: told for label, told in composed.items()}
    return {
        label: composed.get(label) or by_given.get(own) or own or frozenset({("run", label)}) for label, own in given.items()
    }


def _composed(run: Run) -> dict[str, str]:
    """Return a run's composed config without the seed and what does not change a result; and its origin."""
    return {key: value for key, value in run.config.items() if is_hashed(key) and key != "seed"} | run.origin


def _frozen_sets(groups: Mapping[Told, Sequence[Run]]) -> dict[Told, str]:
    """Return {what is frozen, as the config says: a text for it that no other has}; a choice of `freeze` before patterns."""
    found: dict[Told, list[tuple[bool, int, str]]] = {}
    for told, members in groups.items():
        own = [
            (text != overrides_by_key(run).get("freeze"), len(text), text) for run in members if (text := frozen_set_of(run))
        ]
        found.setdefault(place_of(told).frozen, []).extend(own)
    shared = frozenset.intersection(*found) if found else frozenset()
    texts: dict[Told, str] = {}
    for key, ranked in found.items():
        options = sorted((name, value) for name, value in key - shared if name not in WHAT_IS_FROZEN)
        texts[key] = " ".join([min(ranked)[2], *(f"{name.removeprefix('freeze.')}={value}" for name, value in options)])
    return _distinct(texts)


def _contexts(groups: Mapping[Told, Sequence[Run]], runs: Sequence[Run]) -> dict[Told, str]:
    """Return {what else runs were told: a text for it that no other has}; the text of a context that all share is empty."""
    keys = [key for key in swept_keys(runs) if key != "seed"] if len(runs) > 1 else []
    return _distinct({place_of(told).context: _context_of(members[0], keys) for told, members in groups.items()})


def _distinct(texts: Mapping[Told, str]) -> dict[Told, str]:
    """Return the texts, with what differs added to those that several have."""
    by_text: dict[str, list[Told]] = {}
    for told, text in texts.items():
        by_text.setdefault(text, []).append(told)
    found = dict(texts)
    for text, several in by_text.items():
        shared = frozenset.intersection(*several)
        for number, told in enumerate(several if len(several) > 1 else (), 1):
            own = [f"{key.removeprefix('freeze.')}={value}" for key, value in sorted(told - shared)]
            own = [*own[:MAX_DIFFERENCES], f"variant {number}"] if not own or len(own) > MAX_DIFFERENCES else own
            found[told] = " ".join(filter(None, (text, *own)))
    return found


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


def frozen_set_of(run: Run) -> str:
    """Return what a run declares frozen as a text: the choice of `freeze`, or the patterns where these decide."""
    given = {key.lstrip("+"): value for key, value in overrides_by_key(run).items()}
    if "freeze" in given and not {"freeze.patterns", "freeze.keep"} & given.keys():
        return given["freeze"]
    patterns, kept = ((run.config.get(key) or given.get(key, "")).strip("[]") for key in ("freeze.patterns", "freeze.keep"))
    text = f"{patterns} without {kept}" if patterns and kept else patterns
    return text or given.get("freeze", "not recorded")


def _context_of(run: Run, keys: Sequence[str]) -> str:
    """Return a run's values of those override keys in `keys` that choose neither the method nor what is frozen.

    A value that was not given is that of the composed config; the choice of a file is not known then, and left out.
    """
    values, found = overrides_by_key(run), []
    for key in keys:
        name = key.lstrip("+~")
        value = values.get(key, run.config.get(name))
        if name.split(".")[0] not in ("method", "freeze") and value is not None:
            found.append(f"{name}={value}")
    return " ".join(dict.fromkeys(found))


def names_of(settings: Sequence[Setting], most: int = 4) -> str:
    """Return the names of settings as part of a sentence, such as `zero_lr fc, exclude fc and 3 more`."""
    return listed([setting.name for setting in settings], most=most)

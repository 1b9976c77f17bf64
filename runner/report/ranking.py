"""Rank the settings of a sweep by their accuracy on held-out data: its spread over the seeds, and what a step cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from runner.display.units import in_digits, in_gflop
from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.costs import UNFROZEN_TARGET, total_flops
from runner.report.equivalence import BASELINE_TARGET
from runner.report.findings import has_frozen
from runner.report.grouping import SeedGroup, seed_groups, swept_keys
from runner.runs.read import Run

MAX_LINES = 8  # of the ranking in words
# Keys of `data` and `task` that change what is trained on, but not what is held out, or how it is measured.
SAME_HELD_OUT = ("data.epochs", "data.batch_size", "data.workers", "data.drop_last")
ONE_SEED = "with one seed a difference proves nothing: give several, such as seed=0,1,2"


@dataclass(frozen=True)
class Ranked:
    """The runs of one setting (all overrides but the seed) that finished and have an accuracy on held-out data.

    `group`: all runs of the setting. `values`: the accuracy of each of its runs after the training. `flops`: the mean FLOPs
    of a step; None if they are not known for each run.
    """

    group: SeedGroup
    values: list[float]
    flops: float | None

    @property
    def name(self) -> str:
        """The values of the overrides in which the settings differ, such as `zero_lr fc`."""
        return self.group.name

    @property
    def mean(self) -> float:
        """The mean accuracy over the seeds."""
        return fmean(self.values)

    @property
    def is_sound(self) -> bool:
        """Whether it may be recommended: each run held, or trained everything, as with `method=none`, without a defect."""
        return all(run.outcome == "held" or _trains_everything(run) for run in self.group.runs)

    def is_told_apart_from(self, other: Ranked) -> bool:
        """Return whether both have several seeds, and the ranges of their accuracies do not overlap."""
        if min(len(self.values), len(other.values)) < 2:
            return False
        return min(self.values) > max(other.values) or max(self.values) < min(other.values)

    def text(self) -> str:
        """Return the accuracy, its range over the seeds, and the cost, such as `0.91 (0.9 to 0.92, 5 seeds), 2 GFLOP`."""
        low, high, count = in_digits(min(self.values)), in_digits(max(self.values)), len(self.values)
        spread = f"({low} to {high}, {count} seeds)" if count > 1 else "(one seed)"
        cost = f", {in_gflop(self.flops)} GFLOP a step" if self.flops is not None else ""
        return f"{in_digits(self.mean)} {spread}{cost}"


def rank(runs: Sequence[Run]) -> list[Ranked]:
    """Return the settings of the runs, the most accurate first; of equal ones, the cheapest first.

    Returns none if the overrides say that the runs do not have the same held-out data.
    """
    nodes = {key: key.lstrip("+~").split(".")[0] for key in swept_keys(runs)} if len(runs) > 1 else {}
    if any(node in ("data", "task") and key.lstrip("+~") not in SAME_HELD_OUT for key, node in nodes.items()):
        return []
    ranked = []
    for group in seed_groups(runs):
        finished = [run for run in group.runs if run.finished]
        values = [value for run in finished if (value := run.held_out.get("accuracy")) is not None]
        flops = [total for run in finished if (total := total_flops(run.record["cost"])) is not None]
        if values:
            ranked.append(Ranked(group, values, fmean(flops) if len(flops) == len(finished) else None))
    return sorted(ranked, key=lambda each: (-each.mean, float("inf") if each.flops is None else each.flops))


def ranking_lines(ranked: Sequence[Ranked]) -> list[str]:
    """Return the ranking in words: a line for each of the first settings, and what cannot be told apart."""
    if not ranked:
        return []
    lines = []
    for each in ranked[:MAX_LINES]:
        outcome = f"; {each.group.outcome}" if not each.is_sound else ""
        lines.append(f"{each.name}: {each.text()}{outcome}")
    if len(ranked) > MAX_LINES:
        lines.append(f"and {len(ranked) - MAX_LINES:,} more")
    if len(ranked) == 1:
        return lines
    if any(len(each.values) == 1 for each in ranked):
        lines.append(ONE_SEED)
    if tied := [each.name for each in _ties(ranked) if len(each.values) > 1]:
        lines.append(f"not told apart from the first, because the ranges overlap: {listed(tied)}")
    return lines


def best_setting(ranked: Sequence[Ranked]) -> tuple[str, str] | None:
    """Return (headline, explaining sentence) that say which setting to use; None if the accuracies do not tell.

    Compared are the settings that have several seeds and that held. Of those that cannot be told apart from the most
    accurate one, the cheapest is recommended; if costs are not known or equal, that of `requires_grad`, else the first.
    """
    compared = [each for each in ranked if each.is_sound and len(each.values) > 1]
    if len(compared) < 2:
        return None
    equal = [compared[0], *_ties(compared)]
    costs = [each.flops for each in equal if each.flops is not None]
    least = min(costs) if len(costs) == len(equal) else None
    cheapest = [each for each in equal if each.flops == least] if least is not None else equal
    chosen = next((each for each in cheapest if _method(each) == BASELINE_TARGET), cheapest[0])
    lead = f"Its accuracy on held-out data is {chosen.text()}."
    others = [each.name for each in equal if each is not chosen]
    if others:
        how = "; it is the cheapest of them" if least is not None and len(cheapest) == 1 else ""
        lead += f" {listed(others)} {'is' if len(others) == 1 else 'are'} not told apart from it{how}."
    else:
        lead += f" That is above the whole range of {listed([each.name for each in compared[1:]], most=4)}."
    held = any(map(has_frozen, chosen.group.runs)) and _method(chosen) != UNFROZEN_TARGET
    return f"Use {chosen.name}", lead + (" It kept every frozen bit in all of its runs." if held else " It freezes nothing.")


def _ties(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return the settings after the first that cannot be told apart from it."""
    return [each for each in ranked[1:] if not each.is_told_apart_from(ranked[0])]


def _method(ranked: Ranked) -> str:
    """Return the dotted path of the class of a setting's freezing method."""
    return str(ranked.group.runs[0].record["method"].get("_target_", ""))


def _trains_everything(run: Run) -> bool:
    """Return whether a run finished without a defect under `method=none`, with which what is declared frozen leaks."""
    is_none = run.record["method"].get("_target_") == UNFROZEN_TARGET
    return run.finished and is_none and not defects_of(run.record)

"""Rank the settings of a report: by accuracy on held-out data where there is one, else by what held and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from runner.display.units import digits_text, flops_text, percent_text
from runner.report.compare.equivalence import BASELINE_TARGET
from runner.report.compare.grouping import swept_keys
from runner.report.compare.methods import has_frozen
from runner.report.compare.settings import OUTCOMES, Setting, names_of
from runner.runs.read import Run

# Keys of `data` and `task` that change what is trained on, but not what is held out, or how it is measured.
SAME_HELD_OUT = ("data.epochs", "data.batch_size", "data.workers", "data.drop_last")
ONE_SEED = "With one seed the accuracies do not say which is better: give several, such as seed=0,1,2."


def can_compare_accuracies(runs: Sequence[Run]) -> bool:
    """Return whether some run has an accuracy, and all were measured on the same held-out data, as the overrides say."""
    nodes = {key: key.lstrip("+~").split(".")[0] for key in swept_keys(runs)} if len(runs) > 1 else {}
    if any(node in ("data", "task") and key.lstrip("+~") not in SAME_HELD_OUT for key, node in nodes.items()):
        return False
    return any(run.held_out.get("accuracy") is not None for run in runs if run.finished)


def rank(settings: Sequence[Setting], by_accuracy: bool) -> list[Setting]:
    """Return the settings in order.

    `by_accuracy`: the most accurate first, of equal ones the cheapest; those without an accuracy, and those that leaked or
    prove nothing, stand behind the others. Otherwise settings
    with the same frozen parameters stand together, since a cost compares only there: first those that held, the cheapest
    first, then the others by how they ended.
    """
    if by_accuracy:

        def merit(each: Setting) -> tuple[float, ...]:
            return not each.is_sound, -fmean(each.accuracies) if each.accuracies else math.inf, *_costs(each)

        return sorted(settings, key=merit)
    places = {(each.context, each.frozen_set): number for number, each in reversed(list(enumerate(settings)))}

    def place(each: Setting) -> tuple[float, ...]:
        return places[each.context, each.frozen_set], -OUTCOMES.index(each.outcome), *_costs(each), not _is_baseline(each)

    return sorted(settings, key=place)


def told_apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether both have several values, one for each seed, and their ranges do not overlap."""
    return min(len(one), len(other)) > 1 and (min(one) > max(other) or max(one) < min(other))


def ties(ranked: Sequence[Setting]) -> list[Setting]:
    """Return the settings after the first whose accuracies cannot be told apart from those of the first."""
    return [each for each in ranked[1:] if each.accuracies and not told_apart(each.accuracies, ranked[0].accuracies)]


def spread_text(values: Sequence[float]) -> str:
    """Return the mean of a value over the seeds, with its standard deviation: `0.91 ± 0.012`, or `0.91` with one seed."""
    if not values:
        return ""
    return digits_text(fmean(values)) + (f" ± {digits_text(stdev(values), 2)}" if len(values) > 1 else "")


def accuracy_text(setting: Setting) -> str:
    """Return a setting's accuracy with its range over the seeds, such as `0.91 (0.9 to 0.92, 5 seeds)`."""
    values = setting.accuracies
    low, high, count = digits_text(min(values)), digits_text(max(values)), len(values)
    return f"{digits_text(fmean(values))} {f'({low} to {high}, {count} seeds)' if count > 1 else '(one seed)'}"


def cost_text(setting: Setting) -> str:
    """Return what a step costs: `34% of the FLOPs of training everything`, else its FLOPs, else an empty text."""
    share = setting.cost.get("flops_share")
    return f"{percent_text(share)} of the FLOPs of training everything" if share is not None else flops_text(setting.flops)


def best_setting(ranked: Sequence[Setting]) -> tuple[str, str] | None:
    """Return (headline, explaining sentence) that say which setting to use; None if the accuracies do not tell.

    Compared are the settings that have several seeds and that held. Of those that cannot be told apart from the most
    accurate one, the cheapest is recommended; if costs are not known or equal, that of `requires_grad`, else the first.
    """
    compared = [each for each in ranked if each.is_sound and len(each.accuracies) > 1]
    if len(compared) < 2:
        return None
    equal = [compared[0], *ties(compared)]
    costs = [each.flops for each in equal if each.flops is not None]
    least = min(costs) if len(costs) == len(equal) else None
    cheapest = [each for each in equal if each.flops == least] if least is not None else equal
    chosen = next(filter(_is_baseline, cheapest), cheapest[0])
    cost = f" and a step costs {cost_text(chosen)}" if cost_text(chosen) else ""
    lead = f"Its accuracy on held-out data is {accuracy_text(chosen)}{cost}."
    others = [each for each in equal if each is not chosen]
    if others:
        lead += f" Not told apart from it, as the ranges overlap: {names_of(others)}."
        lead += " It is the cheapest of these." if least is not None and len(cheapest) == 1 else ""
    else:
        lead += f" That is above the whole range of {names_of(compared[1:])}."
    freezes = not chosen.trains_everything and any(map(has_frozen, chosen.runs))
    held = f" It kept every frozen bit in all of its {len(chosen.runs)} runs."
    return f"Use {chosen.name}", lead + (held if freezes else " It freezes nothing.")


def _costs(setting: Setting) -> tuple[float, ...]:
    """Return a setting's costs as a sort key: FLOPs, then what is saved for backward; infinity where not known."""
    saved = setting.cost.get("saved_bytes")
    return math.inf if setting.flops is None else setting.flops, math.inf if saved is None else saved


def _is_baseline(setting: Setting) -> bool:
    """Return whether the method of a setting is `requires_grad`."""
    return str(setting.runs[0].record["method"].get("_target_", "")) == BASELINE_TARGET

"""Rank the settings of a report: by accuracy on held-out data where there is one, else by what held and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from runner.display.units import digits_text, flops_text, percent_text
from runner.report.compare.costs import compare_costs, cost_rank
from runner.report.compare.settings import OUTCOMES, Setting, names_of

HELD_OUT_NODES = ("data", "task")  # of the config: what is held out, and how it is measured
HELD_OUT_KEYS = ("model.input", "model.classes")  # by which synthetic data is made
# Keys of `data` that change what is trained on, but not what is held out.
SAME_HELD_OUT = ("data.epochs", "data.batch_size", "data.workers", "data.drop_last", "data.shuffle")
MAX_CHANCE = 0.1  # of two ranges that do not overlap although nothing differs
ONE_SEED = "With one seed the accuracies do not say which is better: give several, such as seed=0,1,2."
FEW_SEEDS = "With so few seeds the accuracies do not say which is better: give at least three, such as seed=0,1,2."


def can_compare_accuracies(settings: Sequence[Setting]) -> bool:
    """Return whether some setting has an accuracy, and all were measured on the same held-out data, as the configs say."""
    return len({_held_out_key(each) for each in settings if each.accuracies}) == 1


def _held_out_key(setting: Setting) -> frozenset[tuple[str, str]]:
    """Return those items of a setting's config that say what is held out, and how it is measured."""
    return frozenset(
        (key, value)
        for key, value in setting.place.context
        if (key.split(".")[0] in HELD_OUT_NODES and key not in SAME_HELD_OUT) or key in HELD_OUT_KEYS
    )


def rank(settings: Sequence[Setting], by_accuracy: bool) -> list[Setting]:
    """Return the settings in order.

    `by_accuracy`: the most accurate first, of equal ones the cheapest; those without an accuracy, and those that leaked or
    prove nothing, stand behind the others. Otherwise settings
    with the same frozen parameters stand together, since a cost compares only there: first those that held, the cheapest
    first, then the others by how they ended.
    """
    if by_accuracy:

        def merit(each: Setting) -> tuple[float, ...]:
            return not each.is_sound, -fmean(each.accuracies) if each.accuracies else math.inf, *cost_rank(each.cost)

        return sorted(settings, key=merit)
    places = {each.place: number for number, each in reversed(list(enumerate(settings)))}

    def place(each: Setting) -> tuple[float, ...]:
        return (
            places[each.place],
            not each.is_sound,
            -OUTCOMES.index(each.outcome),
            *cost_rank(each.cost),
            not each.is_requires_grad,
        )

    return sorted(settings, key=place)


def told_apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether the ranges of two samples, one value for each seed, do not overlap, and there are enough values.

    There are enough if such ranges would be apart by chance in at most one of ten cases, as with three and three seeds.
    """
    if not one or not other or chance_of_gap(len(one), len(other)) > MAX_CHANCE:
        return False
    return min(one) > max(other) or max(one) < min(other)


def chance_of_gap(one: int, other: int) -> float:
    """Return how probable it is that all of `one` values lie above or below all of `other` values of the same distribution.

    Of the equally probable orders of all values, two have the two samples apart.
    """
    return min(1.0, 2 / math.comb(one + other, one))


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
    accurate one, and differ from it at most in the method and in what is frozen, the cheapest is recommended; if costs are
    not known or equal, that of `requires_grad`, else the first.
    """
    compared = [each for each in ranked if each.is_sound and len(each.accuracies) > 1]
    if len(compared) < 2:
        return None
    first = compared[0]
    equal = [first, *ties(compared)]
    if len(equal) == len(compared) and max(len(each.accuracies) for each in compared) < 3:
        return None  # two seeds tell nothing apart
    peers = [each for each in equal if each.place.context == first.place.context]
    known = all(each.flops is not None for each in peers)
    least = min(cost_rank(each.cost) for each in peers)
    cheapest = [each for each in peers if cost_rank(each.cost) == least] if known else peers
    chosen = min(cheapest, key=lambda each: (not each.is_requires_grad, each.trains_everything))
    freezes = not chosen.trains_everything
    number, total = len(chosen.held), len(chosen.runs)
    which = f"all of its {total} runs" if number == total else f"{number} of its {total} runs; the others did not finish"
    held = f" {chosen.name} kept every frozen bit in {which}." if freezes else f" {chosen.name} freezes nothing."
    is_cheapest = 1 < len(peers) == len(equal) and all(
        compare_costs(chosen.cost, each.cost) == -1 for each in peers if each is not chosen
    )
    lead = f"{_accuracy_and_cost(chosen)} {_against_others(chosen, equal, compared, is_cheapest)}"
    return f"Use {chosen.name}", f"{lead}{held}{_one_seed_text(ranked)}"


def caution(ranked: Sequence[Setting]) -> str:
    """Return what to say where `best_setting` returns None although accuracies of several settings are known; else ""."""
    seeds = [len(each.accuracies) for each in ranked if each.is_sound and each.accuracies]
    if len(seeds) < 2:
        return ""
    return ONE_SEED if min(seeds) < 2 else FEW_SEEDS


def _accuracy_and_cost(setting: Setting) -> str:
    """Return a sentence with the accuracy of a setting, and what a step costs."""
    cost = f" and a step costs {cost_text(setting)}" if cost_text(setting) else ""
    return f"With {setting.frozen_set} frozen, its accuracy on held-out data is {accuracy_text(setting)}{cost}."


def _against_others(chosen: Setting, equal: Sequence[Setting], compared: Sequence[Setting], is_cheapest: bool) -> str:
    """Return sentences on the settings that cannot be told apart from the most accurate one, and on those that can."""
    others = [each for each in equal if each is not chosen]
    equal_ids = set(map(id, equal))
    worse = [each for each in compared if id(each) not in equal_ids]
    if others:
        text = f"Not told apart from it: {names_of(others)}{', of which none is as cheap' if is_cheapest else ''}."
        if chosen is not equal[0]:
            text += f" The highest mean is that of {equal[0].name}, {accuracy_text(equal[0])}."
        return text
    chance = max(chance_of_gap(len(chosen.accuracies), len(each.accuracies)) for each in worse)
    return f"That is above the whole range of {names_of(worse)}{_chance_text(chance)}."


def _chance_text(chance: float) -> str:
    """Return how often chance alone would give such a gap; "" if in fewer than one of a hundred cases."""
    return f"; with so few seeds, chance alone does that in 1 of {round(1 / chance)} comparisons" if chance >= 0.01 else ""


def _one_seed_text(ranked: Sequence[Setting]) -> str:
    """Return a sentence on the settings that were not compared, since they have one seed; "" if there is none."""
    single = [each for each in ranked if each.is_sound and len(each.accuracies) == 1]
    return f" Not compared, with one seed: {names_of(single)}." if single else ""

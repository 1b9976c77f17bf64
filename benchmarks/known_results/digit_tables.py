"""The tables of the digits: accuracies at the rate of each arm and at one rate for all, and which arms differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean

from benchmarks.known_results.digits import RATES, SEEDS, TASKS, UNTUNED, accuracies, chosen_rate
from benchmarks.known_results.spreads import SPREADS, difference, mean_and_spread
from benchmarks.known_results.tables import markdown
from benchmarks.results import Row

Pair = tuple[str, str]  # two arms
Accuracies = Mapping[str, Sequence[float]]  # {arm: its accuracy for each seed}


def tuned(rows: Sequence[Row], task: str) -> Accuracies:
    """Return the accuracies of each arm at the rate that was chosen for it."""
    return {arm: accuracies(rows, task, arm, chosen_rate(rows, task, arm)) for arm in TASKS[task]}


def untuned(rows: Sequence[Row], task: str) -> Accuracies:
    """Return the accuracies of each arm at the rate that is the same for all."""
    return {arm: accuracies(rows, task, arm, UNTUNED) for arm in TASKS[task]}


def ordered_pairs(found: Accuracies) -> list[Pair]:
    """Return all pairs of arms; the first of each is the one with the higher mean."""
    return list(combinations(sorted(found, key=lambda arm: mean(found[arm]), reverse=True), 2))


def large_differences(found: Accuracies) -> set[Pair]:
    """Return the pairs of arms of which the first is above the second by more than two spreads."""
    return {(one, other) for one, other in ordered_pairs(found) if difference(found[one], found[other]).is_large}


def texts(rows: Sequence[Row]) -> Row:
    """Return the texts about the digits: {name of a task: its tables and sentences}, and the rates."""
    return {task: texts_of(rows, task) for task in TASKS} | {
        "rates": ", ".join(f"{rate:g}" for rate in RATES),
        "untuned": f"{UNTUNED:g}",
    }


def texts_of(rows: Sequence[Row], task: str) -> Row:
    """Return the tables and sentences about a task."""
    at_own, at_one = tuned(rows, task), untuned(rows, task)
    return {
        "n": len(SEEDS[task]),
        "accuracies": accuracy_table(rows, task),
        "differences": difference_table(at_own, at_one),
        "turned": turned(at_own, at_one),
        "at_the_edge": at_the_edge(rows, task),
    }


def accuracy_table(rows: Sequence[Row], task: str) -> str:
    """Return the table of the accuracies of a task's arms."""
    at_own, at_one = tuned(rows, task), untuned(rows, task)
    cells = [
        (arm, f"{chosen_rate(rows, task, arm):g}", mean_and_spread(at_own[arm]), mean_and_spread(at_one[arm]))
        for arm in TASKS[task]
    ]
    return markdown(("what trains", "rate chosen", "accuracy", f"untuned: rate {UNTUNED:g} for all"), cells)


def difference_table(at_own: Accuracies, at_one: Accuracies) -> str:
    """Return the table of the differences between two arms: at rates of their own, and at one rate for all."""
    cells = []
    for one, other in ordered_pairs(at_own):
        is_large = (one, other) in large_differences(at_own)
        both = (difference(each[one], each[other]) for each in (at_own, at_one))
        cells.append((f"{one} - {other}", *map(str, both), "yes" if is_large else "no"))
    return markdown(("difference", "tuned", "untuned", f"tuned: above {SPREADS} spreads"), cells)


def at_the_edge(rows: Sequence[Row], task: str) -> str:
    """Return a sentence about the arms that have the largest rate, since a larger one might be better; "" without any."""
    arms = [arm for arm in TASKS[task] if chosen_rate(rows, task, arm) == max(RATES)]
    return f"The largest rate was chosen for these, and larger ones were not tried: {'; '.join(arms)}." if arms else ""


def turned(at_own: Accuracies, at_one: Accuracies) -> str:
    """Return a sentence about the pairs of arms whose order is another one if all have the same rate."""
    names = [f"{one} and {other}" for one, other in ordered_pairs(at_own) if (other, one) in ordered_pairs(at_one)]
    if not names:
        return "Untuned, the order is the same."
    return f"**Untuned, the order is the other way round** for {'; '.join(names)}."

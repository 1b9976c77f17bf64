"""Recommend a method: of those that held, trained the rest to the same bits and finished, the cheapest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from runner.contract import Cost
from runner.display.units import percent_text
from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.answer.findings import distinguishing_overrides
from runner.report.compare.costs import compare_costs, cost_rank
from runner.report.compare.methods import MethodResults, has_frozen, trains_something
from runner.report.compare.settings import Place, Setting
from runner.runs.read import Run
from runner.runs.text import counted, shortened

MAX_COSTS = 3  # settings whose costs are named one by one
MAX_NAME = 60  # characters of a method in a sentence
ENDS = {  # outcome of a run: how it ended, as part of a sentence
    "leaked": "leaked",
    "no step": "made no step",
    "nothing trained": "trained nothing",
    "loss not finite": "got a loss that is NaN or infinite",
    "held": "held",
    "running": "still running",
}

CostTable: TypeAlias = "dict[str, dict[Place, Cost]]"
"""{method: {place: the costs of a step}}"""


def recommend(results: Sequence[MethodResults], settings: Sequence[Setting]) -> tuple[str, str]:
    """Return (headline, explaining sentence) that say which method to use.

    `results`: one for each method. The method to use is one of those that `best_methods` returns: the one that is the
    cheapest of them in each setting. If several are, or none is, it is `requires_grad` if that is one of them, otherwise the
    first. `settings`: all settings of the report; costs are compared where only the method differs.

    A run with a defect, such as `nothing trained`, never counts in favour of a method. If there is only one method, if none
    kept every frozen bit in all runs, or if those that did had nothing to train or prove it in fewer than half of their
    runs, the texts say how the methods did.
    """
    if len(results) == 1:
        return _single_method(results[0], settings)
    held = [result for result in results if result.held]
    if not held:
        return _no_method_held(results)
    if not any(map(_trains, held)):
        methods = _names([result.method for result in held])
        return "Held, but nothing was trained", f"{methods} kept every frozen bit, in runs that trained no parameter."
    best = best_methods(held, settings)
    if not best:
        return "No method is proven", " ".join(f"{each.method} held in {_finished_text(each)}." for each in held[:MAX_COSTS])
    costs = cost_table(settings)
    chosen = cheapest_method(costs, best)
    others = [result.method for result in best if result is not chosen]
    parts = [f"held in {_finished_text(chosen)}"]
    if others and all(result.trained_same_bits for result in best):
        parts.append(f"trained the rest to the same bits as {_names(others)}")
    if cost := cost_text(settings, chosen.method):
        parts.append(f"costs {cost}")
    against = _against_others(costs, chosen.method, others) if others else _why_others_are_worse(results, chosen)
    return f"Use {_names([chosen.method])}", f"It {listed(parts)}. {against}".rstrip()


def _against_others(costs: CostTable, chosen: str, others: Sequence[str]) -> str:
    """Return a sentence on the methods that did as well as the chosen one, with what they cost compared with it."""
    by_relation: dict[str, list[str]] = {}
    for other in others:
        by_relation.setdefault(relation(costs, other, chosen), []).append(other)
    texts = {
        "same": "at the same cost",
        "dearer": "at a higher cost",
        "cheaper": "at a lower cost",
        "mixed": "cheaper in one setting and dearer in another",
        "unknown": "with no cost to compare",
    }
    parts = [f"{_names(by_relation[key])}, {text}" for key, text in texts.items() if key in by_relation]
    return f"Held too: {'; '.join(parts)}."


def cheapest_method(costs: CostTable, best: Sequence[MethodResults]) -> MethodResults:
    """Return the first method of `best` than which none is cheaper, `requires_grad` before others; else the first."""
    by_cost = sorted(
        (each.method for each in best), key=lambda method: sorted(map(cost_rank, costs.get(method, {}).values()))
    )
    for result in sorted(best, key=lambda each: not each.is_requires_grad):
        if not any(relation(costs, other, result.method) == "cheaper" for other in by_cost):
            return result
    return best[0]


def cost_table(settings: Sequence[Setting]) -> CostTable:
    """Return {method: {place: the costs of a step}} of the settings whose FLOPs are known."""
    table: dict[str, dict[Place, Cost]] = {}
    for setting in settings:
        if setting.flops is not None:
            table.setdefault(setting.method, {})[setting.place] = setting.cost
    return table


def relation(costs: CostTable, method: str, other: str) -> str:
    """Return whether a method is `cheaper` than another, `dearer`, the `same`, `mixed`, or `unknown`.

    Compared is only where the method alone differs and both costs are known, setting by setting, and nothing is averaged.
    `mixed`: it is cheaper in one setting and dearer in another.
    """
    own, its = costs.get(method, {}), costs.get(other, {})
    signs = {compare_costs(own[place], its[place]) for place in own.keys() & its.keys()} - {None}
    if not signs:
        return "unknown"
    if {-1, 1} <= signs:
        return "mixed"
    return {-1: "cheaper", 1: "dearer"}.get(sum(filter(None, signs)), "same")


def cost_text(settings: Sequence[Setting], method: str) -> str:
    """Return what a step costs under a method, such as `34% of the FLOPs of training everything`; "" if it is not known.

    Where settings differ, it is said for each.

    With more than MAX_COSTS settings it is the range of the costs.
    """
    own = [each for each in settings if each.method == method and not each.no_evidence]
    shares = [(each, share) for each in own if (share := each.cost.get("flops_share")) is not None]
    if not shares:
        return ""
    if len(shares) < len(own):
        known = cost_text([each for each, _ in shares], method)
        return f"{known} (not known in {len(own) - len(shares)} of {len(own)} settings)"
    if len({percent_text(share) for _, share in shares}) == 1:
        return f"{percent_text(shares[0][1])} of the FLOPs of training everything"
    if len(shares) > MAX_COSTS:
        low, high = (percent_text(pick(share for _, share in shares)) for pick in (min, max))
        return f"{low} to {high} of the FLOPs of training everything, depending on the setting"
    several_sets = len({each.frozen_set for each in own}) > 1
    texts: list[str] = []
    for each, share in shares:
        name = " ".join(filter(None, (f"freeze={each.frozen_set}" * several_sets, each.context)))
        texts.append(f"{percent_text(share)}{' of the FLOPs of training everything' * (not texts)} with {name}")
    return listed(texts)


def best_methods(held: Sequence[MethodResults], settings: Sequence[Setting]) -> list[MethodResults]:
    """Return the best of `held`, methods that leaked in no run; none if each proves that in fewer than half of its runs.

    Three conditions are checked: (a) no run of the method failed, was skipped or has a defect where another method of `held`
    is proven, so that what no other was tried with, such as a learning rate, is not held against it; (b) in none of its
    finished runs do the trainable parameters differ from those under `requires_grad`; (c) no frozen tensor changed for a
    while and got its old bits back. The methods that meet a, b and c are returned; if there are none, those that meet a and
    b; else those that meet a; else those that meet b; else all.
    """
    proven = [result for result in held if 2 * len(result.proven) >= len(result.finished)]
    places = {run.label: (each.place, run.record["seed"]) for each in settings for run in each.runs}
    proven_by: dict[object, set[str]] = {}
    for result in held:
        for run in result.proven:
            proven_by.setdefault(places[run.label], set()).add(result.method)
    sound = [
        each for each in proven if not any(proven_by.get(places[run.label], set()) - {each.method} for run in _short(each))
    ]
    same = [result for result in sound if not result.trained_otherwise]
    unmoved = [result for result in same if not result.returned]
    return unmoved or same or sound or [result for result in proven if not result.trained_otherwise] or proven


def _short(result: MethodResults) -> list[Run]:
    """Return the runs in which a method fell short: they failed, were skipped or have a defect."""
    return [run for run in result.runs if run.outcome not in ("held", "interrupted", "running")]


def _single_method(result: MethodResults, settings: Sequence[Setting]) -> tuple[str, str]:
    """Return (headline, explaining sentence) about the only method in the report: whether it kept every frozen bit."""
    proven, finished = len(result.proven), len(result.finished)
    if result.trains_everything:
        return f"{result.method} is the baseline", f"It freezes nothing; {counted(finished, 'run')} finished."
    if result.held:
        headline = "held" if proven == finished else f"held in {proven:,} of {counted(finished, 'run')}"
        cost = cost_text(settings, result.method)
        lead = f"It kept every frozen bit in {_finished_text(result)}{f', and costs {cost}' if cost else ''}."
        return f"{result.method} {headline}", lead if _trains(result) else f"{lead} No parameter was trained."
    if not result.leaked:
        return f"{result.method} is not proven", f"Of {counted(finished, 'run')}, {_ends_text(result.finished)}."
    overrides = distinguishing_overrides(result.leaked, result.measured)
    runs_text = f"{len(result.leaked)} of {counted(len(result.measured), 'run')}"
    return f"{result.method} leaked", f"It leaked in {runs_text}{', with ' + overrides if overrides else ''}."


def _trains(result: MethodResults) -> bool:
    """Return whether a parameter was trained in a run in which the method held."""
    return any(map(trains_something, result.proven))


def _no_method_held(results: Sequence[MethodResults]) -> tuple[str, str]:
    """Return (headline, explaining sentence) for the case that no method kept every frozen bit in all its runs.

    The sentence names the method that kept every frozen bit in the largest share of its runs; `none` does not count.
    """
    candidates = [result for result in results if not result.trains_everything]
    measured = [run for result in candidates for run in result.measured]
    if not measured:
        return "No method is proven", "Of the methods that freeze, no run has finished."
    if all(run.leaked for run in measured):
        return "No method held", "Each leaked in all of its runs; the causes are below."
    if not any(result.proven for result in candidates):
        return "No method held", f"Of {counted(len(measured), 'run')}, {_ends_text(measured)}."
    nearest = max(candidates, key=lambda result: len(result.proven) / max(len(result.finished), 1))
    runs_text = f"{len(nearest.proven)} of {counted(len(nearest.finished), 'run')}"
    return "No method held", f"{nearest.method} came nearest: it held in {runs_text}."


def _finished_text(result: MethodResults) -> str:
    """Return in how many runs a method held: `6 of 6 runs`, or `5 of 6 runs (1 did not finish)`."""
    proven, runs = len(result.proven), [run for run in result.runs if not run.finished or has_frozen(run)]
    others = [run for run in runs if run.outcome != "held"]
    return f"{proven:,} of {counted(len(runs), 'run')}{f' ({_ends_text(others)})' if others else ''}"


def _ends_text(runs: Sequence[Run]) -> str:
    """Return how runs ended, such as `1 leaked, 2 trained nothing and 1 did not finish`."""
    count = Counter(ENDS.get(run.outcome, "did not finish" if not run.finished else "had no verdict") for run in runs)
    return listed([f"{number:,} {end}" for end, number in count.most_common()])


def _why_others_are_worse(results: Sequence[MethodResults], chosen: MethodResults) -> str:
    """Return a sentence that says why the other methods are not recommended; "" if there is none but the baseline."""
    others = [each for each in results if each is not chosen and each.measured and not each.trains_everything]
    leaked = [each.method for each in others if each.leaked]
    kept = [each for each in others if not each.leaked]
    differing = [each.method for each in kept if each.trained_otherwise]
    returned = [each.method for each in kept if each.returned and not each.trained_otherwise]
    defective = [each.method for each in kept if any(defects_of(run.record) for run in each.finished)]
    incomplete = [each.method for each in kept if each.method not in (*differing, *returned, *defective)]
    reasons = [
        f"{_names(differing)} held too, but trained the other parameters differently" if differing else "",
        f"{_names(returned)} put back what had moved" if returned else "",
        f"some runs of {_names(defective)} prove nothing" if defective else "",
        f"{_names(incomplete)} did not finish all runs" if incomplete else "",
        f"{_names(leaked)} leaked" if leaked else "",
    ]
    text = "; ".join(filter(None, reasons))
    return f"{_capitalized(text)}." if text else ""


def _capitalized(text: str) -> str:
    """Return a text that is part of a sentence with a capital letter, unless it begins with the name of a method."""
    return f"S{text[1:]}" if text.startswith("some runs") else text


def _names(methods: Sequence[str]) -> str:
    """Return names of methods as part of a sentence; long names are shortened in their middle."""
    return listed([shortened(method, MAX_NAME) for method in methods], most=6)

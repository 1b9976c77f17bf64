"""Write the report's summary: which methods kept every frozen bit, why others did not, and which method to use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.costs import cheapest_methods
from runner.report.equivalence import compare_trained_parts
from runner.report.findings import Findings, MethodResults, all_findings, distinguishing_overrides, has_frozen
from runner.report.grouping import group_by_method
from runner.report.ranking import best_setting, rank, ranking_lines
from runner.runs.console import cost_lines, evaluation_lines, listed_steps
from runner.runs.read import Run
from runner.runs.text import changed_buffers, counted

MAX_NOTES = 50
ENDS = {  # outcome of a run: how it ended, as part of a sentence
    "leaked": "leaked",
    "no step": "made no step",
    "nothing trained": "trained nothing",
    "loss not finite": "got a loss that is NaN or infinite",
    "held": "held",
}


@dataclass(frozen=True)
class Summary:
    """The summary at the top of the page: a headline, a sentence that explains it (`lead`), and lines under headings.

    `is_bad`: whether the headline is shown in the colour of a leak.
    """

    headline: str
    lead: str
    findings: Findings = field(default_factory=list)
    is_bad: bool = False


def summarize_runs(runs: Sequence[Run]) -> Summary:
    """Return the summary of several runs: which setting or method to use and why, and what happened with each method.

    If accuracies on held-out data tell settings apart over several seeds, a setting is recommended, else a method.
    """
    trained_parts = compare_trained_parts({run.label: run.record for run in runs})
    results = [MethodResults(method, members, trained_parts) for method, members in group_by_method(runs).items()]
    ranked = rank(runs)
    accuracy = [("Held-out accuracy", ranking_lines(ranked))] if ranked else []
    findings = [*accuracy, *all_findings(results, runs)]
    if not any(result.finished for result in results):
        finished = sum(run.finished for run in runs)
        lead = "Nothing was declared frozen." if finished else "Failures and their reasons are below."
        return Summary(f"{counted(finished, 'run')} of {len(runs):,} finished", lead, findings)
    headline, lead = best_setting(ranked) or recommend(results)
    return Summary(headline, lead, findings, is_bad=not any(result.held for result in results))


def recommend(results: Sequence[MethodResults]) -> tuple[str, str]:
    """Return (headline, explaining sentence) that say which method to use.

    `results`: one for each method. The method to use is the cheapest of those that `best_methods` returns. If several are
    equally cheap or costs cannot be compared, it is `requires_grad` if that is one of them, otherwise the first.

    A run with a defect, such as `nothing trained`, never counts in favour of a method. If there is only one method, if none
    kept every frozen bit in all runs, or if those that did had nothing to train, the texts say how the methods did.
    """
    if len(results) == 1:
        return _single_method(results[0])
    held = [result for result in results if result.held]
    if not held:
        return _no_method_held(results)
    if not any(map(_trains, held)):
        methods = listed([result.method for result in held])
        return "Held, but nothing was trained", f"{methods} kept every frozen bit, in runs that trained no parameter."
    best = best_methods(held)
    names = [result.method for result in best]
    cheapest = cheapest_methods({result.method: result.proven for result in best})
    candidates = cheapest[0] if cheapest else names
    baselines = [result.method for result in best if result.is_baseline]
    chosen = next((name for name in candidates if name in baselines), candidates[0])
    headline, others = f"Use {chosen}", [name for name in names if name != chosen]
    lead = f"{chosen} kept every frozen bit in {_finished_text(best[names.index(chosen)])}"
    if not others:
        worse = [result for result in results if result.finished and not result.leaked and result.method != chosen]
        return headline, f"{lead}; {_why_others_are_worse(worse)}."
    identical = all(result.with_trained_part("identical") for result in best if result.method in others)
    lead += f". So did {listed(others)}{', and trained the other parameters to the same bits' if identical else ''}"
    if not cheapest:
        return headline, f"{lead}. {'Any of them will do' if chosen not in baselines else f'{chosen} is PyTorch’s own way'}."
    if len(candidates) == len(names):
        return headline, f"{lead}, at the same cost: {cheapest[1]}."
    equals = [name for name in candidates if name != chosen]
    return headline, f"{lead}. {listed([chosen, *equals])} {'are' if equals else 'is'} the cheapest of them: {cheapest[1]}."


def best_methods(held: Sequence[MethodResults]) -> list[MethodResults]:
    """Return the best of `held`, methods that kept every frozen bit in all finished runs.

    Three conditions are checked: (a) all runs of the method finished without a defect; (b) in none of its finished runs do
    the trainable parameters differ from those under `requires_grad`; (c) no frozen tensor changed for a while and got its
    old bits back. The methods that meet a, b and c are returned; if there are none, those that meet a and b; else those that
    meet b; else those that meet a; else all.
    """
    for condition in (
        lambda result: result.complete and not result.with_trained_part("differs") and not result.returned,
        lambda result: result.complete and not result.with_trained_part("differs"),
        lambda result: not result.with_trained_part("differs"),
        lambda result: result.complete,
    ):
        if found := [result for result in held if condition(result)]:
            return found
    return list(held)


def _single_method(result: MethodResults) -> tuple[str, str]:
    """Return (headline, explaining sentence) about the only method in the report: whether it kept every frozen bit."""
    proven, finished = len(result.proven), len(result.finished)
    if result.held:
        headline = "held" if proven == finished else f"held in {proven:,} of {counted(finished, 'run')}"
        lead = f"It kept every frozen bit in {_finished_text(result)}."
        return f"{result.method} {headline}", lead if _trains(result) else f"{lead} No parameter was trained."
    if not result.leaked:
        return f"{result.method} is not proven", f"Of {counted(finished, 'run')}, {_ends_text(result.finished)}."
    overrides = distinguishing_overrides(result.leaked, result.finished)
    runs_text = f"{len(result.leaked)} of {counted(len(result.finished), 'run')}"
    return f"{result.method} leaked", f"It leaked in {runs_text}{', with ' + overrides if overrides else ''}."


def _trains(result: MethodResults) -> bool:
    """Return whether a parameter was trained in a run in which the method held, as far as `run.json` gives the counts."""
    counts = [run.record["counts"] for run in result.proven]
    return any(each["trained"] or not any(each.values()) for each in counts)


def _no_method_held(results: Sequence[MethodResults]) -> tuple[str, str]:
    """Return (headline, explaining sentence) for the case that no method kept every frozen bit in all its runs.

    The sentence names the method that kept every frozen bit in the largest share of its runs; `none` does not count.
    """
    candidates = [result for result in results if result.method != "none"]
    finished = [run for result in results for run in result.finished]
    if all(run.outcome == "leaked" for run in finished):
        return "No method held", "Each leaked in all of its runs; the causes are below."
    if not any(result.proven for result in candidates):
        return "No method held", f"Of {counted(len(finished), 'run')}, {_ends_text(finished)}."
    nearest = max(candidates, key=lambda result: len(result.proven) / max(len(result.finished), 1))
    runs_text = f"{len(nearest.proven)} of {counted(len(nearest.finished), 'run')}"
    return "No method held", f"{nearest.method} came nearest: it held in {runs_text}."


def _finished_text(result: MethodResults) -> str:
    """Return in how many runs a method held: `its one run`, `all of its 6 runs`, or `5 of 6 runs; 1 did not finish`."""
    proven, runs = len(result.proven), [run for run in result.runs if not run.finished or has_frozen(run)]
    if proven < len(runs):
        return f"{proven:,} of {len(runs):,} runs; {_ends_text([run for run in runs if run.outcome != 'held'])}"
    return "its one run" if proven == 1 else f"all of its {proven:,} runs"


def _ends_text(runs: Sequence[Run]) -> str:
    """Return how runs ended, such as `1 leaked, 2 trained nothing and 1 did not finish`."""
    count = Counter(ENDS.get(run.outcome, "did not finish" if not run.finished else "had no verdict") for run in runs)
    return listed([f"{number:,} {end}" for end, number in count.most_common()])


def _why_others_are_worse(others: Sequence[MethodResults]) -> str:
    """Return why the methods in `others` are not recommended, although in none of their runs something leaked."""
    differing = [result.method for result in others if result.with_trained_part("differs")]
    returned = [result.method for result in others if result.returned and not result.with_trained_part("differs")]
    defective = [result.method for result in others if any(defects_of(run.record) for run in result.finished)]
    incomplete = [result.method for result in others if result.method not in (*differing, *returned, *defective)]
    reasons = [
        f"{listed(differing)} held too, but trained the other parameters differently" if differing else "",
        f"{listed(returned)} put back what had moved" if returned else "",
        f"some runs of {listed(defective)} prove nothing" if defective else "",
        f"{listed(incomplete)} did not finish all runs" if incomplete else "",
    ]
    return "; ".join(filter(None, reasons)) or "no other method held"


def summarize_run(run: Run) -> Summary:
    """Return the summary of one run: whether frozen tensors kept every bit, which tensors moved, and what a step costs."""
    record, counts, notes = run.record, run.record["counts"], run.record["notes"]
    if not run.finished and not run.tensors:
        return Summary(record["status"].capitalize(), _as_sentence(record["reason"]))
    headline, lead = _headline_and_lead(run)
    is_bad = record["verdict"] == "leaked" or bool(defects_of(record))
    idle = [f"{row.name} ({row.cause or 'unknown'})" for row in run.tensors if row.verdict == "idle"]
    findings: Findings = [
        ("Status", [f"{record['status']}: {record['reason']}"] if not run.finished else []),
        ("Trained", [f"{counted(counts['trained'], 'parameter')}"] if counts["trained"] else []),
        ("Idle", [listed(idle)] if idle else []),
        ("Drifted", [changed_buffers(counts["drifted"])] if counts["drifted"] else []),
        ("Held-out data", list(evaluation_lines(record["evaluation"]))),
        ("Bits compared", [f"after {listed_steps(record['looks'])}"] if record["looks"] else []),
        ("Cost", list(cost_lines(record["cost"]))),
        ("Notes", notes[:MAX_NOTES] + ([f"and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else [])),
    ]
    return Summary(headline, lead, [(heading, lines) for heading, lines in findings if lines], is_bad)


def _headline_and_lead(run: Run) -> tuple[str, str]:
    """Return (headline, explaining sentence) about a run; a leak, a defect or an early end stands in the headline."""
    record, (headline, lead) = run.record, _verdict_text(run)
    defects = [f"{word}: {text}" for word, text in defects_of(record).items()]
    if record["verdict"] == "leaked":
        return "; ".join([headline, *defects]), lead
    if not run.finished:
        return "; ".join([record["status"].capitalize(), *defects]), f"{_as_sentence(record['reason'])} {headline}. {lead}"
    if defects:
        return _capitalized("; ".join(defects)), f"{headline}. {lead}"
    return headline, lead


def _verdict_text(run: Run) -> tuple[str, str]:
    """Return (headline, explaining sentence): whether the frozen tensors of a run kept every bit."""
    counts: Mapping[str, int] = run.record["counts"]
    frozen = [row for row in run.tensors if row.frozen]
    leaks = [f"{row.name} ({row.cause or 'unknown'})" for row in frozen if row.verdict == "leaked"]
    if leaks:
        return f"Leaked: {len(leaks)} of {counted(len(frozen), 'frozen tensor')}", f"Changed: {listed(leaks)}."
    if not has_frozen(run):
        return "Nothing was declared frozen", ""
    returned = counts["returned"]
    lead = f"{returned} of them moved within a step, and were put back." if returned else ""
    total = len(frozen) or counts["held"] + returned
    return (
        f"Held: {counted(total, 'frozen tensor')} kept every bit",
        lead or "Compared bit by bit with what they were at the start.",
    )


def _as_sentence(text: str) -> str:
    """Return a text with a capital letter at its start and a full stop at its end; an empty text stays empty.

    A text that begins with a config key gets no capital letter.
    """
    first_word = text.split(" ")[0]
    is_key = "." in first_word or "=" in first_word
    return (text if is_key else _capitalized(text)) + ("" if text.endswith(".") else ".") if text else ""


def _capitalized(text: str) -> str:
    """Return a text with a capital letter at its start and all others as they are."""
    return text[:1].upper() + text[1:]

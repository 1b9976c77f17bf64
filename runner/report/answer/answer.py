"""The answer that stands on top of the page and at the end of a sweep: what to use, with what evidence, what is not done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.report.answer.findings import Findings, all_findings
from runner.report.answer.recommend import recommend
from runner.report.answer.single import describe_run
from runner.report.compare.ranking import best_setting, caution
from runner.report.compare.run_set import RunSet
from runner.runs.text import counted


@dataclass(frozen=True)
class Answer:
    """What a report answers.

    Attributes:
        headline: the answer in a few words, such as `Use requires_grad`.
        sentence: the evidence for it, and what it costs.
        left: how many runs are not done, as a sentence; empty if all are.
        findings: lines under headings, such as (`Leaked`, a line for each method).
        is_bad: whether the headline is shown in the colour of a leak.
    """

    headline: str
    sentence: str
    left: str = ""
    findings: Findings = field(default_factory=list)
    is_bad: bool = False


def answer(run_set: RunSet) -> Answer:
    """Return the answer of a report: of one run whether it held, of several which setting or method to use.

    If accuracies on held-out data tell settings apart over several seeds, a setting is recommended, else a method.
    """
    left = left_text(run_set.left, run_set.total)
    if run_set.single and not run_set.left.get("not begun"):
        headline, sentence, findings, is_bad = describe_run(run_set.single)
        return Answer(headline, sentence, findings=findings, is_bad=is_bad)
    results = run_set.methods
    findings = all_findings(results, run_set.runs)
    if not any(result.finished for result in results):
        finished = sum(run.finished for run in run_set.runs)
        sentence = "Nothing was declared frozen." if finished else "The reasons are below."
        return Answer(f"{finished:,} of {counted(run_set.total, 'run')} finished", sentence, left, findings)
    best = best_setting(run_set.ranked) if run_set.has_accuracies else None
    headline, sentence = best or recommend(results, run_set.settings)
    if run_set.has_accuracies and not best and (text := caution(run_set.ranked)):
        sentence += f" {text}"
    if run_set.left and headline.startswith("Use "):
        headline = f"So far: {headline[:1].lower()}{headline[1:]}"
    return Answer(headline, sentence, left, findings, is_bad=not any(result.held for result in results))


def left_text(left: Mapping[str, int], total: int) -> str:
    """Return how many runs are not done and why, such as `3 of 24 runs are not done: 1 failed, 2 not begun.`; or "".

    `left`: {state: number of runs}. `total`: the number of all runs.
    """
    if not left:
        return ""
    number = sum(left.values())
    states = ", ".join(f"{count:,} {state}" for state, count in left.items())
    return f"{number:,} of {counted(total, 'run')} {'is' if number == 1 else 'are'} not done: {states}."

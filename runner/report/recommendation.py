"""Write the report's summary: which methods kept every frozen bit, why others did not, and which method to use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.errors import listed
from runner.report.costs import cheapest_methods
from runner.report.equivalence import BASELINE_TARGET, compare_trained_parts
from runner.report.grouping import group_by_method, overrides_by_key, swept_keys
from runner.runs.console import cost_lines, listed_steps
from runner.runs.read import Run
from runner.runs.text import changed_buffers, counted

Findings = list[tuple[str, list[str]]]
"""Pairs (heading, the lines below it), in the order of the page."""


@dataclass(frozen=True)
class Summary:
    """The summary at the top of the page: a headline, a sentence that explains it (`lead`), and lines under headings."""

    headline: str
    lead: str
    findings: Findings = field(default_factory=list)


@dataclass(frozen=True)
class MethodResults:
    """The runs of one method; `trained_parts` is what `compare_trained_parts` returns for all runs of the report."""

    method: str
    runs: list[Run]
    trained_parts: dict[str, tuple[str, str]]

    @property
    def finished(self) -> list[Run]:
        """The runs that finished and in which something was declared frozen."""
        return [run for run in self.runs if run.finished and has_frozen(run)]

    @property
    def leaked(self) -> list[Run]:
        """The finished runs that ended with a changed bit in a frozen tensor."""
        return [run for run in self.finished if run.record["verdict"] == "leaked"]

    @property
    def held(self) -> bool:
        """Whether at least one run finished, and in all finished runs the frozen tensors ended with every bit unchanged."""
        return bool(self.finished) and not self.leaked

    @property
    def complete(self) -> bool:
        """Whether every run of the method finished."""
        return all(run.finished for run in self.runs)

    @property
    def returned(self) -> bool:
        """Whether in some finished run a frozen tensor changed for a while and then got its old bits back."""
        return any(run.record["counts"]["returned"] for run in self.finished)

    @property
    def is_baseline(self) -> bool:
        """Whether the method is `requires_grad`; the runs of all other methods are compared with its runs."""
        return bool(self.runs[0].record["method"].get("_target_") == BASELINE_TARGET)

    def with_trained_part(self, word: str) -> list[Run]:
        """Return the finished runs whose trainable parameters compare in a given way with those under `requires_grad`.

        `word`: `identical` for runs in which these parameters end with the same bits, `differs` for runs in which they do
        not.
        """
        return [run for run in self.finished if self.trained_parts[run.label][0] == word]


def has_frozen(run: Run) -> bool:
    """Return whether anything was declared frozen in a run; True if `run.json` does not give the numbers of tensors."""
    counts = run.record["counts"]
    return any(counts[verdict] for verdict in ("held", "returned", "leaked")) or not any(counts.values())


def summarize_runs(runs: Sequence[Run]) -> Summary:
    """Return the summary of several runs: which method to use and why, and what happened with each method."""
    trained_parts = compare_trained_parts({run.label: run.record for run in runs})
    results = [MethodResults(method, members, trained_parts) for method, members in group_by_method(runs).items()]
    if not any(result.finished for result in results):
        finished = sum(run.finished for run in runs)
        lead = "Nothing was declared frozen." if finished else "Failures and their reasons are below."
        return Summary(f"{counted(finished, 'run')} of {len(runs):,} finished", lead, all_findings(results, runs))
    headline, lead = recommend(results)
    return Summary(headline, lead, all_findings(results, runs))


def recommend(results: Sequence[MethodResults]) -> tuple[str, str]:
    """Return (headline, explaining sentence) that say which method to use.

    `results`: one for each method. The method to use is the cheapest of those that `best_methods` returns. If several are
    equally cheap or costs cannot be compared, it is `requires_grad` if that is one of them, otherwise the first.

    If there is only one method, or if none kept every frozen bit in all runs, the texts say how the methods did.
    """
    if len(results) == 1:
        return _single_method(results[0])
    held = [result for result in results if result.held]
    if not held:
        return _no_method_held(results)
    best = best_methods(held)
    names = [result.method for result in best]
    cheapest = cheapest_methods({result.method: result.finished for result in best})
    candidates = cheapest[0] if cheapest else names
    baselines = [result.method for result in best if result.is_baseline]
    chosen = next((name for name in candidates if name in baselines), candidates[0])
    headline, others = f"Use {chosen}", [name for name in names if name != chosen]
    lead = f"{chosen} kept every frozen bit in {_finished_text(best[names.index(chosen)])}"
    if not others:
        return headline, f"{lead}; {_why_others_are_worse([result for result in held if result.method != chosen])}."
    identical = any(result.with_trained_part("identical") for result in best)
    lead += f". So did {listed(others)}{', and trained the other parameters to the same bits' if identical else ''}"
    if not cheapest:
        return headline, f"{lead}. {'Any of them will do' if chosen not in baselines else f'{chosen} is PyTorch’s own way'}."
    if len(candidates) == len(names):
        return headline, f"{lead}, at the same cost: {cheapest[1]}."
    equals = [name for name in candidates if name != chosen]
    return headline, f"{lead}. {listed([chosen, *equals])} {'are' if equals else 'is'} the cheapest of them: {cheapest[1]}."


def best_methods(held: Sequence[MethodResults]) -> list[MethodResults]:
    """Return the best of `held`, methods that kept every frozen bit in all finished runs.

    Three conditions are checked: (a) all runs of the method finished; (b) in none of its finished runs do the trainable
    parameters differ from those under `requires_grad`; (c) no frozen tensor changed for a while and got its old bits back.
    The methods that meet a, b and c are returned; if there are none, those that meet a and b; else those that meet b; else
    those that meet a; else all.
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


def all_findings(results: Sequence[MethodResults], runs: Sequence[Run]) -> Findings:
    """Return the summary's findings about several runs as (heading, lines) pairs, such as (`Leaked`, a line per method).

    `results`: one for each method. A heading without lines is left out.
    """
    idle = [run for run in runs if run.finished and run.record["counts"]["idle"]]
    idle_line = f"something trainable did not move in {counted(len(idle), 'run')}: {list_causes(idle, 'idle')}"
    findings: Findings = [
        ("Held", _held_lines(results)),
        ("Leaked", [_leaked_line(result) for result in results if result.leaked]),
        ("Trained part", _trained_part_lines(results)),
        ("Saves little", [line for result in results for line in _saves_little_lines(result)]),
        ("Idle", [idle_line] if idle else []),
        ("Unfinished", [line for result in results for line in _unfinished_lines(result)]),
    ]
    return [(heading, lines) for heading, lines in findings if lines]


def list_causes(runs: Sequence[Run], verdict: str) -> str:
    """Return a text that lists the causes of a verdict, the most frequent first.

    Counted are all tensors in `runs` that have this verdict. `verdict`: `leaked` (frozen, but changed) or `idle` (trainable,
    but unchanged).
    """
    count = Counter(row.cause or "unknown" for run in runs for row in run.tensors if row.verdict == verdict)
    return listed([cause.replace("|", " with ") for cause, _ in count.most_common()]) or "cause not recorded"


def distinguishing_overrides(picked: Sequence[Run], runs: Sequence[Run]) -> str:
    """Return the overrides that distinguish some runs from others, such as `clip=1.0, freeze=fc|head`.

    `picked`: the runs to distinguish, which are part of `runs`. An override key is listed if it has fewer values in `picked`
    than in `runs`; the text gives its values in `picked`. The seed is never listed.
    """
    texts = []
    for key in swept_keys(runs):
        values, all_values = ({overrides_by_key(run).get(key, "") for run in part} for part in (picked, runs))
        if key != "seed" and len(values) < len(all_values):
            texts.append(f"{key}={'|'.join(sorted(values))}")
    return ", ".join(texts)


def _single_method(result: MethodResults) -> tuple[str, str]:
    """Return (headline, explaining sentence) about the only method in the report: whether it kept every frozen bit."""
    if result.held:
        return f"{result.method} held", f"It kept every frozen bit in {_finished_text(result)}."
    overrides = distinguishing_overrides(result.leaked, result.finished)
    runs_text = f"{len(result.leaked)} of {counted(len(result.finished), 'run')}"
    return f"{result.method} leaked", f"It leaked in {runs_text}{', with ' + overrides if overrides else ''}."


def _no_method_held(results: Sequence[MethodResults]) -> tuple[str, str]:
    """Return (headline, explaining sentence) for the case that no method kept every frozen bit in all its runs.

    The sentence names the method that kept every frozen bit in the largest share of its runs; `none` does not count.
    """
    candidates = [result for result in results if result.method != "none"]
    if not any(len(result.finished) > len(result.leaked) for result in candidates):
        return "No method held", "Each leaked in all of its runs; the causes are below."
    nearest = max(candidates, key=lambda result: (len(result.finished) - len(result.leaked)) / max(len(result.finished), 1))
    held = len(nearest.finished) - len(nearest.leaked)
    return "No method held", f"{nearest.method} came nearest: it held in {held} of {counted(len(nearest.finished), 'run')}."


def _held_lines(results: Sequence[MethodResults]) -> list[str]:
    """Return a line that lists the methods that never changed a frozen bit, and one for those that put changed bits back.

    A line that would list no method is left out.
    """
    unmoved = [result.method for result in results if result.held and not result.returned]
    returned = [result.method for result in results if result.held and result.returned]
    lines = [f"{listed(unmoved)}: every frozen bit, at every comparison"] if unmoved else []
    return lines + ([f"{listed(returned)}: moved within a step, and was put back each time"] if returned else [])


def _leaked_line(result: MethodResults) -> str:
    """Return a line on a method that changed frozen bits: in how many runs, why, and with which overrides."""
    overrides = distinguishing_overrides(result.leaked, result.finished)
    runs_text = f"in {len(result.leaked)} of {counted(len(result.finished), 'run')}"
    line = f"{result.method}: {runs_text}, cause: {list_causes(result.leaked, 'leaked')}"
    return f"{line}; with {overrides}" if overrides else line


def _trained_part_lines(results: Sequence[MethodResults]) -> list[str]:
    """Return lines that say which methods train the trainable parameters to the same bits as `requires_grad` does.

    One line lists the methods with the same bits. Each method with other bits has its own line, with the reasons.
    """
    others = [result for result in results if not result.is_baseline]
    identical = [
        result.method
        for result in others
        if result.with_trained_part("identical") and not result.with_trained_part("differs")
    ]
    lines = [f"same bits as under requires_grad: {listed(identical)}"] if identical else []
    for result in results:
        if differing := result.with_trained_part("differs"):
            compared = len(differing) + len(result.with_trained_part("identical"))
            reasons = dict.fromkeys(result.trained_parts[run.label][1] for run in differing)
            runs_text = f"{len(differing)} of {counted(compared, 'run')}"
            lines.append(f"other bits: {result.method}, in {runs_text} ({listed(list(reasons))})")
    return lines


def _saves_little_lines(result: MethodResults) -> list[str]:
    """Return a line for each reason why freezing saves little with this method.

    The list is empty if the method changed frozen bits.
    """
    by_reason: dict[str, list[Run]] = {}
    for run in result.finished:
        if (reason := run.record["cost"].get("why_small")) and not result.leaked:
            by_reason.setdefault(str(reason), []).append(run)
    overrides = {reason: distinguishing_overrides(runs, result.finished) for reason, runs in by_reason.items()}
    return [f"{result.method}: {reason}{'; with ' + text if text else ''}" for reason, text in overrides.items()]


def _unfinished_lines(result: MethodResults) -> list[str]:
    """Return a line for each status other than `finished`: how many runs of the method have this status."""
    by_status = Counter(run.record["status"] for run in result.runs if not run.finished)
    total = counted(len(result.runs), "run")
    return [f"{result.method}: {number} of {total} {status}" for status, number in by_status.items()]


def _finished_text(result: MethodResults) -> str:
    """Return how many runs finished: `its one run`, `all of its 6 runs`, or `5 of 6 runs; 1 did not finish`."""
    finished = len(result.finished)
    total = len([run for run in result.runs if not run.finished or has_frozen(run)])
    if finished < total:
        return f"{finished:,} of {total:,} runs; {total - finished:,} did not finish"
    return "its one run" if finished == 1 else f"all of its {finished:,} runs"


def _why_others_are_worse(others: Sequence[MethodResults]) -> str:
    """Return why the methods in `others` are not recommended, although they kept every frozen bit."""
    differing = [result.method for result in others if result.with_trained_part("differs")]
    returned = [result.method for result in others if result.returned and not result.with_trained_part("differs")]
    incomplete = [result.method for result in others if result.method not in (*differing, *returned)]
    reasons = [
        f"{listed(differing)} held too, but trained the other parameters differently" if differing else "",
        f"{listed(returned)} put back what had moved" if returned else "",
        f"{listed(incomplete)} did not finish all runs" if incomplete else "",
    ]
    return "; ".join(filter(None, reasons)) or "no other method held"


def summarize_run(run: Run) -> Summary:
    """Return the summary of one run: whether frozen tensors kept every bit, which tensors moved, and what a step costs."""
    record, counts = run.record, run.record["counts"]
    if not run.finished and not run.tensors:
        return Summary(record["status"].capitalize(), _as_sentence(record["reason"]))
    headline, lead = _verdict_text(run)
    idle = [f"{row.name} ({row.cause or 'unknown'})" for row in run.tensors if row.verdict == "idle"]
    findings: Findings = [
        ("Status", [f"{record['status']}: {record['reason']}"] if not run.finished else []),
        ("Trained", [f"{counted(counts['trained'], 'parameter')}"] if counts["trained"] else []),
        ("Idle", [listed(idle)] if idle else []),
        ("Drifted", [changed_buffers(counts["drifted"])] if counts["drifted"] else []),
        ("Bits compared", [f"after {listed_steps(record['looks'])}"] if record["looks"] else []),
        ("Cost", list(cost_lines(record["cost"]))),
        ("Notes", record["notes"]),
    ]
    return Summary(headline, lead, [(heading, lines) for heading, lines in findings if lines])


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
    return (text if is_key else text[:1].upper() + text[1:]) + ("" if text.endswith(".") else ".") if text else ""

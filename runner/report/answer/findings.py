"""What the runs of each method show: which kept the frozen bits, why others did not, how they trained, what they saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from runner.contract import DEFECTS, Defect
from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.compare.grouping import overrides_by_key, swept_keys
from runner.report.compare.methods import MethodResults
from runner.report.compare.origin import FROM
from runner.runs.read import Run
from runner.runs.text import counted

Findings = list[tuple[str, list[str]]]
"""Pairs (heading, the lines below it), in the order of the page."""


DRIFTED = "buffers that were not frozen, such as the statistics of BatchNorm, changed"
DRIFT_IS_NORMAL = "that is normal in train mode, and freeze.buffers=frozen stops it"
BASELINE_LINE = "method=none does nothing about what is declared frozen, and trains everything"


def all_findings(results: Sequence[MethodResults], runs: Sequence[Run]) -> Findings:
    """Return the summary's findings about several runs as (heading, lines) pairs, such as (`Leaked`, a line per method).

    `results`: one for each method. A heading without lines is left out.
    """
    idle = [run for run in runs if run.finished and run.record["counts"]["idle"]]
    idle_line = f"something trainable did not move in {counted(len(idle), 'run')}: {list_causes(idle, 'idle')}"
    known = [run for run in runs if run.finished and any(run.record["counts"].values())]
    drifted = [run for run in known if run.record["counts"]["drifted"]]
    drifted_line = f"{DRIFTED} in {len(drifted):,} of {counted(len(known), 'run')}; {DRIFT_IS_NORMAL}"
    findings: Findings = [
        ("Held", _held_lines(results)),
        ("Leaked", [_leaked_line(result) for result in results if result.leaked and not result.trains_everything]),
        *((word.capitalize(), [line for result in results for line in _defect_lines(result, word)]) for word in DEFECTS),
        ("Trained part", _trained_part_lines(results)),
        ("Not repeatable", _not_repeatable_lines(runs)),
        ("Idle", [idle_line] if idle else []),
        ("Drifted", [drifted_line] if drifted else []),
        ("Baseline", [BASELINE_LINE] if any(result.trains_everything for result in results) else []),
    ]
    return [(heading, lines) for heading, lines in findings if lines]


def _not_repeatable_lines(runs: Sequence[Run]) -> list[str]:
    """Return a line if runs of the same config and seed, on the same machine as far as is known, trained other bits."""
    digests: dict[tuple[object, ...], set[str]] = {}
    for run in runs:
        if run.finished and run.record["config_hash"] and run.record["trained_digest"]:
            same = {key: value for key, value in run.origin.items() if key != FROM}
            digests.setdefault((run.record["config_hash"], *sorted(same.items())), set()).add(run.record["trained_digest"])
    number = sum(len(found) > 1 for found in digests.values())
    return [f"{counted(number, 'config')} ran several times, and trained other bits"] if number else []


def list_causes(runs: Sequence[Run], verdict: str) -> str:
    """Return a text that lists the causes of a verdict, the most frequent first.

    Counted are all tensors in `runs` that have this verdict. `verdict`: `leaked` (frozen, but changed) or `idle` (trainable,
    but unchanged).
    """
    count = Counter(row.cause or "unknown" for run in runs for row in run.tensors if row.verdict == verdict)
    causes = [cause.replace("|", " with ") for cause, _ in count.most_common()]
    if causes and any(verdict in run.missing for run in runs):
        causes.append("others not recorded")
    return listed(causes) or "cause not recorded"


def distinguishing_overrides(picked: Sequence[Run], runs: Sequence[Run]) -> str:
    """Return the overrides that distinguish some runs from others, such as `clip=1.0, freeze=fc|head`.

    `picked`: the runs to distinguish, which are part of `runs`. An override key is listed if it has fewer values in `picked`
    than in `runs`; the text gives its values in `picked`. The seed is never listed.
    """
    texts = []
    for key in swept_keys(runs):
        values, all_values = ({overrides_by_key(run).get(key) or "default" for run in part} for part in (picked, runs))
        if key != "seed" and len(values) < len(all_values):
            texts.append(f"{key}={'|'.join(sorted(values))}")
    return ", ".join(texts)


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
    overrides = distinguishing_overrides(result.leaked, result.measured)
    runs_text = f"in {len(result.leaked)} of {counted(len(result.measured), 'run')}"
    line = f"{result.method}: {runs_text}, cause: {list_causes(result.leaked, 'leaked')}"
    return f"{line}; with {overrides}" if overrides else line


def _defect_lines(result: MethodResults, defect: Defect) -> list[str]:
    """Return a line that says in how many runs of a method there was a defect, and with which overrides; none if in none.

    Runs in which something leaked or nothing was declared frozen count as well.
    """
    finished = [run for run in result.runs if run.finished]
    found = [run for run in finished if defect in defects_of(run.record)]
    overrides = distinguishing_overrides(found, finished)
    line = f"{result.method}: in {len(found)} of {counted(len(finished), 'run')}"
    return [f"{line}; with {overrides}" if overrides else line] if found else []


def _compared_text(result: MethodResults) -> str:
    """Return in how many runs the trained parameters were compared: `1 of 5 runs compared`."""
    return f"{len(result.with_trained_part('identical'))} of {counted(len(result.finished), 'run')} compared"


def _trained_part_lines(results: Sequence[MethodResults]) -> list[str]:
    """Return lines that say which methods train the trainable parameters to the same bits as `requires_grad` does.

    One line lists the methods with the same bits. Each method with other bits has its own line, with the reasons.
    """
    results = [result for result in results if not result.trains_everything]
    others = [result for result in results if not result.is_requires_grad]
    identical = [
        result.method if result.trained_same_bits else f"{result.method} ({_compared_text(result)})"
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

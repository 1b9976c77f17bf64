"""The answer about one run: whether the frozen tensors kept every bit, which tensors moved, and what a step costs."""

from __future__ import annotations

from collections.abc import Mapping

from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.answer.findings import Findings
from runner.report.compare.methods import has_frozen
from runner.runs.console import evaluation_lines, listed_steps
from runner.runs.read import Run
from runner.runs.text import changed_buffers, counted

MAX_NOTES = 50


def describe_run(run: Run) -> tuple[str, str, Findings, bool]:
    """Return (headline, sentence, findings, whether something is wrong) about one run."""
    record, counts, notes = run.record, run.record["counts"], run.record["notes"]
    if not run.finished and not run.tensors:
        return record["status"].capitalize(), _as_sentence(record["reason"]), [], False
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
        ("Notes", notes[:MAX_NOTES] + ([f"and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else [])),
    ]
    return headline, lead, [(heading, lines) for heading, lines in findings if lines], is_bad


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

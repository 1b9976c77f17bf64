"""The answer about one run: whether the frozen tensors kept every bit, what else must be known, and what a step costs."""

from __future__ import annotations

from typing import cast

from runner.contract import Row
from runner.display.units import percent_text
from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.report.answer.findings import Findings
from runner.runs.console import evaluation_lines, listed_steps
from runner.runs.headline import headline
from runner.runs.read import Run
from runner.runs.text import changed_buffers, counted

MAX_NOTES = 50


def describe_run(run: Run) -> tuple[str, str, Findings, bool]:
    """Return (headline, sentence, findings, whether something is wrong) about one run.

    The headline is that of the terminal.
    """
    record, counts, notes = run.record, run.record["counts"], run.record["notes"]
    if not run.finished and not run.leaked and not run.tensors and not any(counts.values()):
        return run.state.capitalize(), as_sentence(record["reason"]), [], False
    title, sentence, is_bad = _headline_and_sentence(run)
    idle = [f"{row.name} ({row.cause or 'unknown'})" for row in run.tensors if row.verdict == "idle"]
    idle += [f"{run.missing['idle']:,} whose rows are missing"] if "idle" in run.missing else []
    trained = counts["trained"] + int(record.get("trained_in_phases") or 0)
    findings: Findings = [
        ("Trained", [counted(trained, "parameter")] if trained else []),
        ("Idle", [listed(idle)] if idle else []),
        ("Drifted", [changed_buffers(counts["drifted"])] if counts["drifted"] else []),
        ("Held-out data", list(evaluation_lines(record["evaluation"]))),
        ("Bits compared", [f"after {listed_steps(record['looks'])}"] if record["looks"] else []),
        ("Notes", notes[:MAX_NOTES] + ([f"and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else [])),
    ]
    return title, sentence, [(heading, lines) for heading, lines in findings if lines], is_bad


def _headline_and_sentence(run: Run) -> tuple[str, str, bool]:
    """Return (headline, sentence, whether something is wrong) about a run that trained."""
    record = run.record
    share = percent_text(record["cost"].get("flops_share"))
    cost = f" A step costs {share} of the FLOPs of training everything." if share else ""
    if not run.tensors and not any(record["counts"].values()):
        verdict = ", but ".join([record["verdict"] or "no verdict", *defects_of(record)]).capitalize()
        is_bad = run.outcome != "held"
        return verdict, f"The rows of its tensors could not be read.{cost}", is_bad
    rows = [cast(Row, row._asdict()) for row in run.tensors]
    first = headline(record, rows)
    return first.label.capitalize(), f"{as_sentence(first.text)}{cost}", first.colour == "red"


def as_sentence(text: str) -> str:
    """Return a text with a capital letter at its start and a full stop at its end; an empty text stays empty.

    A text that begins with a config key gets no capital letter.
    """
    first_word = text.split(" ")[0]
    is_key = "." in first_word or "=" in first_word
    return (text if is_key else text[:1].upper() + text[1:]) + ("" if text.endswith(".") else ".") if text else ""

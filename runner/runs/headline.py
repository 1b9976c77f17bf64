"""The first sentence about a run that trained: whether the frozen tensors held, and what else must be known with that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runner.contract import Record, Row
from runner.display.units import change_text, digits_text
from runner.errors import listed
from runner.proof.verdict import defects_of
from runner.runs.tables import missing_rows, missing_text
from runner.runs.text import changed_buffers, counted

Colour = Literal["red", "yellow", "green", ""]
STYLES: dict[Colour, str] = {"red": "bold red", "yellow": "bold yellow", "green": "bold green", "": "bold"}
TRAINABLE = ("trained", "idle")  # the verdicts that only parameters have that were not declared frozen
MAX_LEAKS = 3  # that are named
MAX_DIGITS = 17  # with these, two different numbers are different texts


@dataclass(frozen=True)
class Headline:
    """What is said first about a run, or one part of it.

    Attributes:
        label: the words in capitals, such as `HELD` or `HELD, BUT LOSS ROSE`.
        text: the sentence after them.
        colour: that of the worst of what the label says; green only if the run held and nothing else must be known.
    """

    label: str
    text: str
    colour: Colour


def headline(record: Record, rows: Sequence[Row]) -> Headline:
    """Return the headline of a run that trained.

    `record`: the content of its `run.json`. `rows`: the rows of its `changes.csv`; where some are missing, the numbers are
    those that `record` counts. The label begins with LEAKED if a bit of a frozen tensor differs at the end, with HELD if
    none does, with NO VERDICT if `record` does not say it, with NOTHING FROZEN if no tensor was declared frozen, and with
    NO STEP if no step was made. What makes the run worth less follows.
    """
    missing = missing_rows(record["counts"], (row["verdict"] for row in rows))
    verdict, flaws = _verdict_part(record, rows, missing), list(_flaws(record, rows, missing))
    if "no step" in defects_of(record):
        verdict, *flaws = flaws
    parts = [verdict, *flaws]
    rest = " AND ".join(part.label for part in flaws)
    label = verdict.label + (f", {'BUT ' * (verdict.label == 'HELD')}{rest}" if rest else "")
    colours = [part.colour for part in parts]
    colour = next((each for each in ("red", "yellow") if each in colours), "" if flaws else verdict.colour)
    return Headline(label, "; ".join(part.text for part in parts if part.text), colour)


def _verdict_part(record: Record, rows: Sequence[Row], missing: Mapping[str, int]) -> Headline:
    """Return what the headline says about the frozen tensors. `missing`: see `missing_rows`."""
    frozen = [row for row in rows if row["frozen"] or row["verdict"] in ("held", "leaked")]
    leaked, returned = (
        sum(row["verdict"] == word for row in frozen) + missing.get(word, 0) for word in ("leaked", "returned")
    )
    total = len(frozen) + sum(missing.get(word, 0) for word in ("held", "returned", "leaked"))
    if leaked:
        return Headline("LEAKED", f"{leaked} of {counted(total, 'frozen tensor')} changed", "red")
    if record["verdict"] == "leaked":  # and its record counts nothing
        where = (
            "in a phase, and had its old bits again at the end"
            if len(record["phases"]) > 1
            else "whose row could not be read"
        )
        return Headline("LEAKED", f"a frozen tensor changed, {where}", "red")
    if record["verdict"] is None:
        return Headline("NO VERDICT", "the record does not say whether every frozen tensor held", "yellow")
    if not total:
        why = record["nothing_frozen"]
        return Headline("NOTHING FROZEN", why or "no parameter was declared frozen", "yellow" if why else "")
    if returned:
        return Headline("HELD", f"{counted(total, 'frozen tensor')}; {returned} of them moved and returned", "green")
    parameters = [row["frozen"] for row in rows if row["kind"] == "parameter"]
    all_frozen = (parameters or "held" in missing) and all(parameters) and not any(word in missing for word in TRAINABLE)
    trained_too = bool(record.get("trained_in_phases", 0))
    alone = "; every parameter is frozen, so nothing trained" if all_frozen and not trained_too else ""
    when = " while frozen" if trained_too else ""
    return Headline("HELD", f"{total} of {counted(total, 'frozen tensor')} kept every bit{when}{alone}", "green")


def _flaws(record: Record, rows: Sequence[Row], missing: Mapping[str, int]) -> Iterator[Headline]:
    """Yield what must be known besides the verdict, the worst first."""
    defects = defects_of(record)
    if "no step" in defects:
        yield Headline("NO STEP", defects["no step"], "red")
    if "loss not finite" in defects:
        yield Headline("LOSS NOT FINITE", f"the loss became {defects['loss not finite']}", "red")
    idle = [row for row in rows if row["verdict"] == "idle"]
    if "nothing trained" in defects:
        yield Headline("NOTHING TRAINED", f"{defects['nothing trained']}{_reasons(idle)}", "red")
    elif (count := len(idle) + missing.get("idle", 0)) and "no step" not in defects:
        known = sum(row["kind"] == "parameter" and not row["frozen"] for row in rows)
        trainable = counted(known + sum(missing.get(word, 0) for word in TRAINABLE), "trainable parameter")
        yield Headline(f"{counted(count, 'parameter').upper()} IDLE", f"{count} of {trainable} did not change", "yellow")
    if missing:
        label = f"{counted(sum(missing.values()), 'row').upper()} MISSING"
        yield Headline(label, missing_text(missing, record["counts"]), "yellow")
    if loss_rose(record):
        first, last = distinct_texts(record["loss_first"], record["loss_last"])
        yield Headline("LOSS ROSE", f"the loss rose, {first} -> {last}", "yellow")
    if record["status"] != "finished":
        yield Headline(record["status"].upper(), record["reason"], "yellow")


def _reasons(idle: Sequence[Row]) -> str:
    """Return the names of idle parameters and why they are, such as `: head.weight (no_gradient)`."""
    causes = ", ".join(sorted({row["cause"] or "unknown" for row in idle}))
    return f": {listed([row['name'] for row in idle], most=4)} ({causes})" if idle else ""


def loss_rose(record: Record) -> bool:
    """Return whether the loss of a run that trained something rose, as `proof.verdict.loss_rose` says, and stayed finite."""
    return record["loss_rose"] and bool(record["counts"]["trained"]) and "loss not finite" not in defects_of(record)


def distinct_texts(first: float | None, last: float | None) -> tuple[str, str]:
    """Return two numbers as texts, with as many digits as it takes to see that they differ; `not finite` for None."""
    texts = [("not finite", "not finite")]
    for digits in (4, 6, 9, MAX_DIGITS):
        texts.append((digits_text(first, digits) or "not finite", digits_text(last, digits) or "not finite"))
        if first == last or texts[-1][0] != texts[-1][1]:
            break
    return texts[-1]


def moved_lines(record: Record, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for what moved: the tensors that leaked, the worst first, those that are idle, and what trained.

    `record`, `rows`: as in `headline`. Idle parameters that the headline names are left out.
    """
    leaks = sorted((row for row in rows if row["verdict"] == "leaked"), key=change_key, reverse=True)
    if leaks:
        texts = [f"{row['name']} {change_of(row)} ({row['cause'] or 'unknown'})" for row in leaks[:MAX_LEAKS]]
        more = max(len(leaks), record["counts"]["leaked"]) - len(texts)  # a row may be missing
        yield "leaked", ", ".join(texts) + (f" and {more} more" if more else "")
    idle = [row for row in rows if row["verdict"] == "idle"]
    if idle and "nothing trained" not in defects_of(record):
        yield "idle", _reasons(idle).removeprefix(": ")
    texts = []
    if trained := [row for row in rows if row["verdict"] == "trained" or trained_in_phases(row)]:
        most = max(trained, key=change_key)
        number = max(len(trained), sum(row["verdict"] == "trained" for row in rows) + record.get("trained_in_phases", 0))
        texts.append(f"{counted(number, 'parameter')}, most of all {most['name']}, {change_of(most)}")
    elif number := record.get("trained_in_phases", 0):  # before they were frozen, from when on their change is measured
        texts.append(counted(number, "parameter"))
    if drifted := [row["module_type"] for row in rows if row["verdict"] == "drifted"]:
        texts.append(changed_buffers(len(drifted), drifted))
    if texts:
        yield "trained" if trained or record.get("trained_in_phases", 0) else "moved", "; ".join(texts)


def trained_in_phases(row: Row) -> bool:
    """Return whether a tensor that held while it was frozen moved in other phases."""
    return row["frozen"] and row["kind"] == "parameter" and row["moved"] and row["verdict"] in ("held", "returned")


def change_of(row: Row) -> str:
    """Return how far a tensor moved, relative to its initial norm, such as `by 32.1%`."""
    relative, norm = row["change_rel"], row["change_l2"]
    if relative is not None:
        return f"by {change_text(relative)}" if abs(relative) < float("inf") else "to what is not finite"
    if norm is None:
        return "in bits"
    return f"from 0 to a norm of {digits_text(norm)}" if abs(norm) < float("inf") else "to what is not finite"


def change_key(row: Row) -> tuple[bool, bool, float]:
    """Return a sort key for a row of `changes.csv` that puts the tensor that changed most last.

    Unchanged tensors come first, then integer tensors, then floating-point tensors. Tensors of the same kind are sorted by
    their relative change, or by the L2 norm of the change if there is no relative change. NaN and a missing norm count as
    infinite.
    """
    change = row["change_rel"] if row["change_rel"] is not None else row["change_l2"]
    is_integer = row["dtype"].startswith(("int", "uint", "bool"))  # such as num_batches_tracked, which says little
    return row["moved"], not is_integer, float("inf") if change is None or change != change else change

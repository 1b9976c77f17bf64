"""Which methods trained the rest bit by bit as `requires_grad` does, and why others did not."""

from __future__ import annotations

from collections.abc import Mapping

from runner.report.read import Record

BASELINE = "requires_grad"
COUPLINGS = {
    "clip": "clipping: the frozen part's gradients enter the norm",
    "optimizer": "the optimizer's step looks across tensors, the frozen part's gradients among them",
}


def rests(records: Mapping[str, Record]) -> dict[str, tuple[str, str]]:
    """Of each run, by name: `identical` or `differs`, and why; both empty where there is no run to hold it against.

    That is the run of `requires_grad` whose overrides are otherwise the same, or differ in `freeze.buffers` alone.
    """
    baselines: dict[object, Record] = {}
    for record in records.values():
        method, key = _told(record)
        if method == BASELINE and record["trained_digest"]:
            baselines[key] = record
            baselines.setdefault(_but_buffers(key), record)
    found = {}
    for name, record in records.items():
        key = _told(record)[1]
        baseline = baselines.get(key) or baselines.get(_but_buffers(key))
        if baseline is None or not record["trained_digest"]:
            found[name] = ("", "")
        elif record["trained_digest"] == baseline["trained_digest"]:
            found[name] = ("identical", "")
        else:
            found[name] = ("differs", _why(record, baseline))
    return found


def _told(record: Record) -> tuple[str, frozenset[tuple[str, str]]]:
    """A run's method with its options, and what else was overridden."""
    given = dict(text.split("=", 1) for text in record["overrides"])
    options = sorted(f"{key}={value}" for key, value in given.items() if key.lstrip("+").startswith("method."))
    rest = frozenset((key, value) for key, value in given.items() if key.lstrip("+").partition(".")[0] != "method")
    return " ".join([given.get("method", BASELINE), *options]), rest


def _but_buffers(key: frozenset[tuple[str, str]]) -> tuple[str, frozenset[tuple[str, str]]]:
    return "but buffers", frozenset(pair for pair in key if pair[0] != "freeze.buffers")


def _why(record: Record, baseline: Record) -> str:
    if record["verdict"] == "leaked":
        return "the frozen part leaked"
    if baseline["verdict"] == "leaked":
        return f"the frozen part leaked under {BASELINE}"
    for key in ("device", "threads", "versions"):
        if record[key] != baseline[key]:
            return f"run with other {key}"
    if _told(record)[1] != _told(baseline)[1]:
        return "BatchNorm and dropout in inference mode (freeze.buffers) in one of the two"
    told = [COUPLINGS[word] for word in record.get("couplings", ()) if word not in baseline.get("couplings", ())]
    return "; ".join(told) or "unknown"

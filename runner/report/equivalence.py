"""Which methods trained the rest bit by bit as `requires_grad` does, and why others did not."""

from __future__ import annotations

from collections.abc import Mapping

from runner.contract import Record

BASELINE = "runner.methods.requires_grad.RequiresGrad"
COUPLINGS = {
    "clip": "clipping: the frozen part's gradients enter the norm",
    "optimizer": "the optimizer's step looks across tensors, the frozen part's gradients among them",
}


def trained_parts(records: Mapping[str, Record]) -> dict[str, tuple[str, str]]:
    """Of each run, by name: `identical` or `differs`, and why; both empty where there is no run to hold it against.

    That is the run of `requires_grad` whose config is otherwise the same, or else differs in `freeze.buffers` alone.
    """
    baselines: dict[tuple[str, str], Record] = {}
    for record in records.values():
        if _is_baseline(record):
            baselines[record["setting"], record["buffers"]] = record
            baselines.setdefault((record["setting"], "any"), record)
    found = {}
    for name, record in records.items():
        setting = record.get("setting", "")
        baseline = baselines.get((setting, record.get("buffers", "")), baselines.get((setting, "any")))
        if baseline is None or not record["trained_digest"] or record.get("status", "finished") != "finished":
            found[name] = ("", "")
        elif record["trained_digest"] == baseline["trained_digest"]:
            found[name] = ("identical", "")
        else:
            found[name] = ("differs", _why(record, baseline))
    return found


def _is_baseline(record: Record) -> bool:
    method = record.get("method", {})
    known = method.get("_target_") == BASELINE and not method.get("clean") and bool(record["trained_digest"])
    return known and bool(record.get("setting"))  # an old record has none, and could be of any setting


def _why(record: Record, baseline: Record) -> str:
    if record["verdict"] == "leaked":
        return "the frozen part leaked"
    if baseline["verdict"] == "leaked":
        return "the frozen part leaked under requires_grad"
    for key in ("device", "threads", "versions"):
        if record[key] != baseline[key]:
            return f"run with other {key}"
    if record["buffers"] != baseline["buffers"]:
        return "BatchNorm and dropout in eval mode (freeze.buffers) in one of the two"
    told = [COUPLINGS.get(word, word) for word in record.get("couplings", ()) if word not in baseline.get("couplings", ())]
    return "; ".join(told) or "unknown"

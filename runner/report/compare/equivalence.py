"""Compare the trainable parameters at the end of each run, bit by bit, with those of a run of `method=requires_grad`."""

from __future__ import annotations

from collections.abc import Mapping

from runner.contract import Record
from runner.proof.verdict import defects_of
from runner.runs.read import Run

REQUIRES_GRAD_TARGET = "runner.methods.requires_grad.RequiresGrad"
OTHER_MACHINE = "run with other"  # begins a reason: versions, device or threads
COUPLING_TEXTS = {
    "clip": "clipping: the frozen part's gradients enter the norm",
    "optimizer": "the optimizer's step looks across tensors, the frozen part's gradients among them",
}


def compare_trained_parts(
    records: Mapping[str, Record], origins: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, tuple[str, str]]:
    """Return {run label: (word, reason)}: do the run's trainable parameters end with the same bits as under `requires_grad`?

    The word is `identical` or `differs`. The reason says why the bits differ. Both are empty if the run cannot be compared,
    as where nothing trained or the loss became NaN.
    `records`: {run label: the content of its `run.json`}. `origins`: {run label: what tells it from runs of other machines}.

    A run is compared with the finished run of `method=requires_grad` that has otherwise the same config and origin. If there
    is no such run, it is compared with one of another origin, or else with another value of `freeze.buffers`.
    """
    references: dict[tuple[object, ...], Record] = {}
    for label, record in records.items():
        if _is_reference(record):
            for key in _from_near_to_far(record, (origins or {}).get(label, {})):
                references.setdefault(key, record)
    compared = {}
    for label, record in records.items():
        near = _from_near_to_far(record, (origins or {}).get(label, {}))
        reference = next((references[key] for key in near if key in references), None)
        if reference is None or not _is_comparable(record):
            compared[label] = ("", "")
        elif record["trained_digest"] == reference["trained_digest"]:
            compared[label] = ("identical", "")
        else:
            compared[label] = ("differs", _why_different(record, reference))
    return compared


def _from_near_to_far(record: Record, origin: Mapping[str, str]) -> list[tuple[object, ...]]:
    """Return the keys under which a run is found as one to compare with, that of the run most like it first."""
    setting, buffers, where = record.get("setting", ""), record.get("buffers", ""), tuple(sorted(origin.items()))
    return [(setting, buffers, where), (setting, buffers), (setting, "any", where), (setting, "any")]


def is_requires_grad(run: Run) -> bool:
    """Return whether a run's method is `requires_grad`, whose runs those of the other methods are compared with."""
    return str(run.record["method"].get("_target_", "")) == REQUIRES_GRAD_TARGET


def _is_reference(record: Record) -> bool:
    """Return whether a run is one that the runs of other methods are compared with.

    True if the run finished without a defect (`defects_of`), its method is `requires_grad` without the option `clean`, and
    its `run.json` has the hashes that the comparison needs. `record`: the content of that `run.json`.
    """
    method = record.get("method", {})
    if method.get("_target_") != REQUIRES_GRAD_TARGET or method.get("clean"):
        return False
    return _is_comparable(record) and bool(record.get("setting"))  # records of old versions have no setting


def _is_comparable(record: Record) -> bool:
    """Return whether a run finished without a defect, trained a parameter, and has the hash of its trainable parameters."""
    counts, finished = record.get("counts", {}), record.get("status", "finished") == "finished"
    has_trained = bool(counts.get("trained")) or not any(counts.values())  # old records have no counts
    return bool(finished and has_trained and record["trained_digest"] and not defects_of(record))


def _why_different(record: Record, reference: Record) -> str:
    """Return why the trainable parameters of a run differ from those of its `requires_grad` run, or `unknown`.

    `record`, `reference`: the content of the `run.json` of the run and of its `requires_grad` run.
    """
    if record["verdict"] == "leaked":
        return "the frozen part leaked"
    if reference["verdict"] == "leaked":
        return "the frozen part leaked under requires_grad"
    for key in ("device", "threads", "versions"):
        if record[key] != reference[key]:
            return f"{OTHER_MACHINE} {key}"
    if record["buffers"] != reference["buffers"]:
        return "BatchNorm and dropout in eval mode (freeze.buffers) in one of the two"
    own_couplings = [word for word in record.get("couplings", ()) if word not in reference.get("couplings", ())]
    return "; ".join(COUPLING_TEXTS.get(word, word) for word in own_couplings) or "unknown"

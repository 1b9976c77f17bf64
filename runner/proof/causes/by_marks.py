"""Find out who changed a frozen tensor from its marks alone, where no step can be watched or repeated any more."""

from __future__ import annotations

from runner.proof.causes.replay import sharing_memory
from runner.proof.following import Followed
from runner.proof.optimizers import KnownOptimizers
from runner.shards import rank_and_count

# Causes that a replay also finds if the state of the optimizer pulls a tensor back that other code has written.
PULLS_BACK = ("optimizer_state", "weight_decay|optimizer_state", "optimizer_rule", "optimizer_ignores_lr")


def explain_by_marks(row: Followed, optimizers: KnownOptimizers, *, steps_are_seen: bool, advice: str) -> None:
    """Store the cause of a change that no replay explains, as far as the marks of the tensor show who wrote it.

    `steps_are_seen`: whether hooks are set on optimizers; without them a step may have written the tensor unseen. `advice`:
    what the user may do to find the cause, such as `use every=1`.
    """
    evidence, window = row.evidence, row.window
    if optimizers.last_step + 1 in window.written_before and evidence.fallback_cause in PULLS_BACK:
        evidence.fallback_cause = ""
    if evidence.fallback_cause or evidence.cause:
        return
    if evidence.replaced:
        evidence.cause = evidence.replaced
    elif any(sharing_memory({row.name: row.tensor}, each) for each in optimizers.known):
        evidence.cause = "shared_tensor"
    elif not steps_are_seen:
        evidence.why_unknown = "torch.compile had compiled a step before, so that no step was seen in the block"
    elif not optimizers.last_step and (row.kind == "buffer" or row.tensor.grad is not None):
        evidence.why_unknown = "no optimizer step was seen in the block"
    elif window.reached and not window.written_before:
        between = f"between steps {window.begin} and {evidence.seen_at}"
        moved = f"a step {between} moved it, but a replay of the last one does not, or it was written through .data"
        reason = moved if window.written_in_step else f"it was written through .data {between}"
        evidence.why_unknown = evidence.why_unknown or f"{reason}: {advice}"
    elif rank_and_count()[1] > 1 and not window.written_before and optimizers.holding([row]):
        reason = f"a step after step {window.begin} may have received it from another process: {advice}"
        evidence.why_unknown = evidence.why_unknown or reason
    elif row.kind == "buffer" or (window.steps and window.is_before_first_step):
        evidence.why_unknown = evidence.why_unknown or f"it was written by a forward pass or by other code: {advice}"
    else:
        evidence.cause = "outside_write"

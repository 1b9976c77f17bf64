"""LP-FT on two linear layers: training everything distorts features that are right, and training the head first does not."""

from __future__ import annotations

from benchmarks.known_results.linear_truth import expected_error
from benchmarks.known_results.runs import finished_run
from benchmarks.results import Row

SEEDS, STEPS, RATE = range(3), 4000, 0.02
ARMS = {
    "everything": ("freeze=none",),
    "head alone": ("freeze=backbone",),
    "head, then everything": ("freeze=backbone", "schedule=linear_probe_then_finetune", "schedule.factor=1"),
}
MODELS, DATA = "benchmarks.known_results.models", "benchmarks.known_results.linear_truth"


def measure() -> list[Row]:
    """Return a row for each arm and seed: the last loss, and the expected error after training."""
    return [run_arm(arm, seed) for arm in ARMS for seed in SEEDS]


def run_arm(arm: str, seed: int) -> Row:
    """Return the row of one run."""
    model = ("model=custom", f"model.build._target_={MODELS}.TwoLinear", f"++model.build.seed={seed}", "model.head=head")
    data = ("data=custom", f"data._target_={DATA}.full_batches", f"++data.seed={seed}", f"++data.steps={STEPS}")
    training = (f"task.loss={MODELS}.half_squared_error", f"optimizer.lr={RATE}", "optimizer.momentum=0", f"seed={seed}")
    result = finished_run(*model, "model.dtype=float64", *data, *training, *ARMS[arm])
    weights = {name: each.detach() for name, each in result.model.named_parameters()}
    error = expected_error(weights["features.weight"], weights["head.weight"], seed)
    return {"arm": arm, "seed": seed, "loss_last": result.record["loss_last"], "expected_error": error}

"""How many elements AdamW leaves as they are in 100 steps because the dtype rounds their updates away."""

from __future__ import annotations

from benchmarks.known_results.digits import DATA, MODEL
from benchmarks.known_results.runs import finished_run
from benchmarks.results import Row

SEEDS = range(5)
DECAY = 0.01  # the default of torch.optim.AdamW
SETTINGS = (  # dtype, rate, weight decay
    ("bfloat16", 1e-6, DECAY),
    ("bfloat16", 1e-4, DECAY),
    ("float32", 1e-6, DECAY),
    ("float32", 1e-6, 0.0),
    ("float32", 1e-4, DECAY),
)


def measure() -> list[Row]:
    """Return a row for each setting and seed: the share of elements of which no bit has changed."""
    return [run_setting(*setting, seed=seed) for setting in SETTINGS for seed in SEEDS]


def run_setting(dtype: str, rate: float, decay: float, *, seed: int) -> Row:
    """Return the row of one run: 100 steps of 50 digits, everything trained, by AdamW."""
    model = ("model=custom", f"model.build._target_={MODEL}", "++model.build.features=[64]", "model.classes=10")
    data = ("data=custom", f"data._target_={DATA}", "++data.task=labels", "++data.part=pretrain", f"++data.seed={seed}")
    training = ("++data.batch_size=50", "data.epochs=5", "optimizer=adamw", f"optimizer.lr={rate}")
    result = finished_run(
        *model, f"model.dtype={dtype}", *data, *training, f"optimizer.weight_decay={decay}", f"seed={seed}", "freeze=none"
    )
    parameters = [row for row in result.rows if row["kind"] == "parameter"]
    moved, every = (sum(row[key] for row in parameters) for key in ("moved_elements", "numel"))
    return {"dtype": dtype, "rate": rate, "weight_decay": decay, "seed": seed, "unchanged": 1 - moved / every}

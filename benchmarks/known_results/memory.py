"""The memory of block coordinate training: what the meter counts for D equal blocks, and LISA's share that always trains."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.known_results.runs import finished_run
from benchmarks.results import Row
from runner.assemble.setup import assembled
from runner.config.check import check
from runner.config.compose import compose_config

LAYERS, FEATURES = 16, 64
WEIGHTS = LAYERS * FEATURES**2
DIVISIONS = (1, 2, 4, 8, 16)  # numbers of blocks
KEPT = ("parameter_bytes", "gradient_bytes", "optimizer_state_bytes")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": "false",
}


def measure() -> list[Row]:
    """Return a row for each number of blocks and dtype: the bytes that the meter counts."""
    return [run_blocks(blocks, dtype) for dtype in ("float32", "bfloat16") for blocks in DIVISIONS]


def run_blocks(blocks: int, dtype: str) -> Row:
    """Return the row of a run that trains each of `blocks` equal blocks for two steps, one after the other, by AdamW."""
    size = LAYERS // blocks
    cut = [[f"{layer}" for layer in range(start, start + size)] for start in range(0, LAYERS, size)]
    model = ("model=custom", "model.build._target_=benchmarks.known_results.models.equal_layers")
    model = (*model, f"++model.build.layers={LAYERS}", f"++model.build.features={FEATURES}", f"model.dtype={dtype}")
    field = f"{{shape: [{FEATURES}]}}"
    data = ("data=synthetic", f"data.fields=[{field}, {field}]", f"batches={2 * blocks}", "task.loss=mse_loss")
    result = finished_run(*model, *data, "optimizer=adamw", "cost=count", *blocks_in_turn(cut))
    cost = result.record["cost"]
    return {"dtype": dtype, "blocks": blocks, "weights": WEIGHTS, **{key: cost[key] for key in KEPT}}


def blocks_in_turn(cut: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the overrides for training these blocks in turn, two steps each; one block alone is all of the model."""
    if len(cut) == 1:
        return ("freeze=none",)
    texts = ", ".join(f"[{', '.join(map(repr, patterns))}]" for patterns in cut)
    return ("freeze=all", "schedule=block_coordinate", "schedule.every=2", f"schedule.blocks=[{texts}]")


def measure_lisa() -> list[Row]:
    """Return one row: what trains in the first phase of LISA with Llama-3.1-8B and two layers at a time, on the meta device.

    The embeddings, the head and the last norm always train. `trained`, `always`: numbers of weights.
    """
    config = "{" + ", ".join(f"{key}: {value}" for key, value in LLAMA.items()) + "}"
    model = ("model=huggingface", "model.auto=AutoModelForCausalLM", f"model.config={config}", "data=tokens")
    schedule = ("schedule=block_coordinate", "schedule.at_once=2", "schedule.every=1", "batches=16", "data.batch_size=1")
    checked = check(compose_config(*model, *schedule, "freeze.patterns=[model.layers]", "freeze.keep=[]", "device=cpu"))
    with assembled(checked, have_values=False) as setup:
        every = sum(parameter.numel() for parameter in setup.parameters)
        frozen = sum(parameter.numel() for parameter in setup.phases[0].selection.parameters.values())
        in_turn = sum(parameter.numel() for parameter in setup.selection.parameters.values())
    return [{"weights": every, "trained": every - frozen, "always": every - in_turn}]

"""FreezeOut: the FLOPs that it saves in a whole training, counted phase by phase, and what its authors' formula predicts.

Source: https://arxiv.org/abs/1706.04983 and https://github.com/ajbrock/FreezeOut (`calc_speedup` in utils.py)
"""

from __future__ import annotations

from math import floor

from benchmarks.results import Row
from runner.assemble.setup import assembled
from runner.config.check import check
from runner.config.compose import compose_config
from runner.foresight.costs import plan_costs

STEPS = 100_000  # 100 passes over 50,000 pictures in batches of 50, as the authors train
SETTINGS = {"cubic": (3, 0.8, 1.0), "linear": (1, 0.5, 1.3)}  # {how: (power, t0, the factor of the authors' formula)}
GROWTH, LAYERS, PIXELS = 12, 12, (32**2, 16**2, 8**2)  # growth rate, layers in a dense block, pixels in each dense block
MODEL = "benchmarks.known_results.models.densenet_bc"
DENSE = [f"features.denseblock{{}}.denselayer{number + 1}" for number in range(LAYERS)]
BLOCKS = [
    "features.conv0",
    *(layer.format(1) for layer in DENSE),
    "features.transition1",
    *(layer.format(2) for layer in DENSE),
    "features.transition2",
    *(layer.format(3) for layer in DENSE),
]


def measure() -> list[Row]:
    """Return a row for each phase of both settings: its steps, its FLOPs, and those of a step in which everything trains."""
    return [row for how in SETTINGS for row in count_phases(how, STEPS)]


def count_phases(how: str, steps: int) -> list[Row]:
    """Return a row for each phase of a training with this setting; counted without values, so that nothing is trained."""
    config = check(compose_config(*overrides(how, steps), "device=cpu"))
    with assembled(config, have_values=False) as setup:
        costs = plan_costs(setup, setup.feed.first)
    assert costs is not None
    assert costs.unfrozen is not None
    full = costs.unfrozen.flops_forward + costs.unfrozen.flops_backward
    return [
        {"how": how, "first": each.first, "last": each.last, "flops": each.flops, "flops_full": full}
        for each in costs.phases
    ]


def overrides(how: str, steps: int) -> tuple[str, ...]:
    """Return the overrides of a training with this setting, in batches of two pictures, which do not change a share.

    What FreezeOut never freezes, the last BatchNorm and the classifier, is not frozen.
    """
    model = ("model=custom", f"model.build._target_={MODEL}", "model.head=classifier", "model.input=[3,32,32]")
    frozen = ("freeze.patterns=[features]", "freeze.keep=[features.norm5]", "schedule=freeze_out", f"schedule.how={how}")
    schedule = (f"schedule.t0={SETTINGS[how][1]}", f"schedule.blocks=[{','.join(BLOCKS)}]")
    return (*model, *frozen, *schedule, "model.classes=100", "data.batch_size=2", f"batches={steps}")


def counted_saving(rows: list[Row], how: str) -> float:
    """Return the share of a whole training's FLOPs that the setting saves."""
    rows = [row for row in rows if row["how"] == how]
    steps = [row["last"] - row["first"] + 1 for row in rows]
    spent = sum(row["flops"] * count for row, count in zip(rows, steps, strict=True))
    return 1 - spent / (rows[0]["flops_full"] * sum(steps))


def predicted_saving(how: str, backward: int = 1) -> float:
    """Return the share that the authors' formula predicts, before its factor.

    `backward`: the FLOPs of a layer's backward pass, divided by those of its forward pass; the formula takes 1.
    """
    power, t0, _ = SETTINGS[how]
    layers = layer_costs()
    shares = [(t0 + (1 - t0) * index / len(layers)) ** power for index in range(len(layers))]
    spent = sum(layers) + backward * sum(cost * share for cost, share in zip(layers, shares, strict=True))
    return 1 - spent / ((1 + backward) * sum(layers))


def layer_costs() -> list[int]:
    """Return the multiplications of each layer in a forward pass, as that formula counts them: without transitions."""
    costs = [3 * 2 * GROWTH * PIXELS[0] * 9]
    channels = 2  # divided by the growth rate
    for pixels in PIXELS:
        for _ in range(LAYERS):
            costs.append((channels * 4 + 4 * 9) * GROWTH**2 * pixels)
            channels += 1
        channels = floor(channels / 2)
    return costs

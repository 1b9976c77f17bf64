"""Why freezing saves little: the clause that a run's summary ends with."""

from __future__ import annotations

from torch import nn

from runner.cost.flops import META, StepCount
from runner.cost.shares import explain_small_saving
from runner.freezing.selection import select


def cost_with_share(share=1.0):
    return {"flops_share": share}


def count_with(*order: str, gradients: tuple[str, ...] = ()) -> StepCount:
    return StepCount(1, 1, 0, 0, 0, gradients, order, {}, (), (), False, META)


def test_the_summary_says_why_a_saving_is_small():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    order = ("0.weight", "0.bias", "1.weight", "1.bias")
    first, last, nothing = (select(model, patterns) for patterns in (["0"], ["1"], ["0.bias"]))
    assert explain_small_saving(cost_with_share(0.3), count_with(*order), first) == ""
    assert "computed all the same" in explain_small_saving(
        cost_with_share(), count_with(*order, gradients=("0.weight",)), first
    )
    assert "at the end: backward still runs through it" in explain_small_saving(cost_with_share(), count_with(*order), last)
    assert "begins before the frozen part" in explain_small_saving(
        cost_with_share(), count_with(*order), select(model, ["0.bias"])
    )
    assert "computes little" in explain_small_saving(cost_with_share(0.99), count_with("0.bias", *order), nothing)

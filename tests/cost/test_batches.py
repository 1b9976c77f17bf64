"""The batches that a run was fed: one example of each shape, and the mean over them."""

from __future__ import annotations

import pytest
import torch

from runner.cost import batches
from runner.cost.batches import MOST_SHAPES, FedBatches, mean_count
from runner.cost.flops import META, REAL, StepCount


def count(flops: int, **changes) -> StepCount:
    figures = {
        "flops_forward": flops,
        "flops_backward": 2 * flops,
        "saved_bytes": flops,
        "gradient_bytes": flops,
        "peak_bytes": flops,
        "gradients": (f"w{flops}",),
        "parameter_order": ("w",),
        "flops_by_module": {"": flops},
        "flops_again_by_module": {"0": flops},
        "backward_through": ("0",),
        "unpriced": (),
        "unmeasured": (),
        "depends_on_values": False,
        "counted_on": META,
    }
    return StepCount(**figures | changes)


def test_the_mean_weighs_each_shape_by_its_steps_and_the_peak_is_the_highest():
    mean = mean_count([(count(10), 1), (count(20, counted_on=REAL, unpriced=("aten::x",)), 3)])
    assert (mean.flops_forward, mean.flops_backward, mean.saved_bytes) == (18, 35, 18)  # 17.5, rounded to even
    assert (mean.peak_bytes, mean.gradient_bytes) == (20, 20)
    assert (mean.flops_by_module, mean.flops_again_by_module) == ({"": 18}, {"0": 18})
    assert mean.gradients == ("w10", "w20")
    assert (mean.counted_on, mean.unpriced) == (REAL, ("aten::x",))


def test_the_first_batch_of_each_shape_is_kept_and_all_are_counted():
    fed = FedBatches()
    for size in (1, 2, 1, 1):
        fed.add((torch.zeros(size, 3), torch.zeros(size)))
    assert list(fed.steps.values()) == [3, 1]
    seen = []
    fed.mean(lambda batch, shapes: seen.append(len(batch[0])) or count(1), torch.device("cpu"))
    assert seen == [1, 2]
    assert fed.note == "a step is the mean over the 2 shapes of batches that were fed"


def test_of_very_many_shapes_the_first_are_kept_and_the_note_says_so():
    fed = FedBatches()
    for size in range(1, MOST_SHAPES + 4):
        fed.add(torch.zeros(size))
    assert len(fed.examples) == MOST_SHAPES
    assert (
        fed.note
        == f"a step is the mean over the first {MOST_SHAPES} of the {MOST_SHAPES + 3} shapes of batches that were fed"
    )


def test_large_batches_are_not_kept_beyond_a_limit_but_the_first_always_is(monkeypatch):
    monkeypatch.setattr(batches, "MOST_BYTES", 100)
    fed = FedBatches()
    for size in (1000, 10, 2000):
        fed.add(torch.zeros(size))
    assert [tensor.numel() for tensor in fed.examples.values()] == [1000]


@pytest.mark.parametrize("nested", [lambda x: {"x": x}, lambda x: [x, [x]], lambda x: x])
def test_batches_of_any_nesting_are_told_apart_by_shapes_and_dtypes(nested):
    fed = FedBatches()
    for tensor in (torch.zeros(2), torch.zeros(2), torch.zeros(2).double()):
        fed.add(nested(tensor))
    assert list(fed.steps.values()) == [2, 1]

"""The known results of benchmarks/known_results: the page shows the stored figures, and the large ones come out again."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.known_results import digits, freeze_out, memory, rounding, two_linear
from benchmarks.known_results.__main__ import FIGURES, PAGE
from benchmarks.known_results.digit_batches import PARTS, TUNED_ON, number_within_class, part_of_digits
from benchmarks.known_results.digit_tables import large_differences, ordered_pairs, tuned
from benchmarks.known_results.linear_truth import draw_truth, expected_error
from benchmarks.known_results.page import page
from benchmarks.known_results.runs import finished_run
from benchmarks.known_results.spreads import difference

STORED = json.loads(FIGURES.read_text())


def stored_rows(part):
    """Return the stored rows of a part of the benchmark."""
    return STORED["results"][part]


def test_the_page_is_what_the_stored_figures_give():
    assert PAGE.read_text() == page(STORED["results"], STORED["machine"])


def test_the_expected_error_is_the_squared_length_of_the_wrong_weights():
    truth = draw_truth(3)
    assert expected_error(truth.features, truth.head, 3) == 0
    assert expected_error(truth.features, 0 * truth.head, 3) == pytest.approx(1)
    assert expected_error(truth.features, -truth.head, 3) == pytest.approx(4)
    x = torch.randn(100_000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampled = (x @ (0.5 * truth.head @ truth.features).T).square().mean()
    assert expected_error(truth.features, 0.5 * truth.head, 3) == pytest.approx(sampled.item(), rel=0.02)


def test_the_parts_of_the_digits_share_no_picture_and_have_as_many_of_each_class_to_tune_on():
    for task, count in (("new", 1797), ("labels", 1797), ("inputs", 797)):
        parts = [part_of_digits(task, part, seed=1) for part in PARTS if (task, part) != ("inputs", "pretrain")]
        assert sum(len(x) for x, _ in parts) == count
        assert len({tuple(x.tolist()) for pictures, _ in parts for x in pictures}) == count
        _, labels = part_of_digits(task, "train", seed=1)
        assert {*labels.unique(return_counts=True)[1].tolist()} == {TUNED_ON // (5 if task == "new" else 10)}
    assert number_within_class(torch.tensor([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]


def test_two_arms_are_told_apart_by_a_difference_above_two_spreads():
    assert not difference([0.5, 0.6], [0.4, 0.38]).is_large
    assert difference([0.5, 0.6], [0.4, 0.49]).is_large
    assert difference([0.4, 0.49], [0.5, 0.6]).is_large


def test_the_formula_of_freeze_out_predicts_what_its_paper_says():
    assert f"{freeze_out.predicted_saving('cubic'):.1%} {freeze_out.predicted_saving('linear'):.1%}" == "17.8% 17.3%"


def saving_by_hand(how):
    """Return the share of the FLOPs that FreezeOut saves, from the shapes of all layers.

    A product of the size of the forward one is made for the gradient of the weights, and one for that of the input, except
    for the pictures. In a layer that trains, both are made, since there is a BatchNorm before each convolution.
    """
    power, t0, _ = freeze_out.SETTINGS[how]
    layers, channels = [3 * 24 * 9 * 32**2 // 2], 24  # multiplications of a forward pass, halved where there is no input's
    for pixels in freeze_out.PIXELS:
        for _ in range(freeze_out.LAYERS):
            layers.append((channels * 48 + 48 * 12 * 9) * pixels)
            channels += 12
        if pixels != freeze_out.PIXELS[-1]:
            layers.append(channels * (channels // 2) * pixels)
            channels //= 2
    shares = [(t0 + (1 - t0) * place / len(layers)) ** power for place in range(len(layers))]
    always = sum(layers) + layers[0] + 3 * channels * 100  # all forward passes, and the classifier
    steps = [math.ceil(share * freeze_out.STEPS) for share in shares]
    saved = sum(2 * layer * (freeze_out.STEPS - count) for layer, count in zip(layers, steps, strict=True))
    return saved / ((always + 2 * sum(layers)) * freeze_out.STEPS)


@pytest.mark.parametrize("how", freeze_out.SETTINGS)
def test_the_counted_saving_of_freeze_out_is_that_by_hand_and_near_its_formula_if_backward_is_twice_forward(how):
    counted = freeze_out.counted_saving(stored_rows("freeze_out"), how)
    assert counted == pytest.approx(saving_by_hand(how), rel=1e-9)
    assert counted == pytest.approx(freeze_out.predicted_saving(how, backward=2), abs=0.004)


@pytest.mark.long
def test_a_run_meters_the_flops_of_freeze_out_that_its_plan_counts():
    planned = freeze_out.counted_saving(freeze_out.count_phases("cubic", 30), "cubic")
    result = finished_run(*freeze_out.overrides("cubic", 30), "cost=count")
    assert len(result.record["phases"]) > 10
    assert 1 - result.record["cost"]["flops_share"] == pytest.approx(planned, rel=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_equal_blocks_in_turn_hold_their_share_of_gradients_and_optimizer_state(dtype, size):
    row, blocks = memory.run_blocks(4, dtype), 4
    of_block = size * memory.WEIGHTS // blocks
    step_numbers = 4 * memory.LAYERS // blocks
    held = {key: row[key] for key in memory.KEPT}
    assert list(held.values()) == [size * memory.WEIGHTS, of_block, 2 * of_block + step_numbers]
    assert row in stored_rows("memory")


def test_adamw_moves_few_elements_in_bfloat16_and_most_in_float32_at_a_rate_of_a_millionth():
    low, high = (rounding.run_setting(dtype, 1e-6, rounding.DECAY, seed=0) for dtype in ("bfloat16", "float32"))
    assert low["unchanged"] > 0.99
    assert high["unchanged"] < 0.25


@pytest.mark.long
def test_training_the_head_first_keeps_features_that_are_right_and_training_everything_does_not():
    error = {(row["arm"], row["seed"]): row["expected_error"] for row in two_linear.measure()}
    for (arm, seed), value in error.items():
        assert value > 1e-3 if arm == "everything" else value < 1e-12, (arm, seed)


@pytest.mark.long
@pytest.mark.parametrize("task", digits.TASKS)
def test_arms_that_differ_by_more_than_two_spreads_have_the_same_order_again(task):
    stored = stored_rows("digits")
    rates = {arm: [digits.chosen_rate(stored, task, arm)] for arm in digits.TASKS[task]}
    rows = [row for seed in digits.SEEDS[task] for row in digits.runs_of_seed(task, seed, rates)]
    expected = large_differences(tuned(stored, task))
    assert expected
    assert expected <= {*ordered_pairs(tuned(rows, task))}


@pytest.mark.long
def test_most_of_what_lisa_trains_in_a_step_always_trains():
    assert memory.measure_lisa() == stored_rows("lisa")
    (row,) = stored_rows("lisa")
    assert f"{row['always'] / row['trained']:.1%}" == "70.7%"

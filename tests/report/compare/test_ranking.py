"""The ranking by accuracy on held-out data: what it recommends, what it does not claim, and where it is shown."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from runner.report.answer.answer import Answer, answer
from runner.report.compare.ranking import FEW_SEEDS, ONE_SEED, told_apart
from runner.report.compare.run_set import RunSet
from runner.report.files import write_run_page, write_sweep_files
from runner.report.page.matrix import ranking_table
from runner.runs.read import read_run, run_folders
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, write_run

SWEEP = Path("sweep")
NOTHING_FROZEN = (change_row("body.weight", "trained", 0.5), change_row("head.weight", "trained", 0.5))


def write_setting(method, freeze, /, *accuracies, flops=None, rows=HELD_ROWS, **record):
    """Write a run for each accuracy, with seeds 0, 1, 2, ..."""
    for seed, accuracy in enumerate(accuracies):
        evaluation = {"before": {"loss": 2.0, "accuracy": 0.1}, "after": {"loss": 1 - accuracy, "accuracy": accuracy}}
        cost = {} if flops is None else {"flops_forward": flops, "flops_backward": 0, "saved_bytes": 1}
        options = {"evaluation": evaluation, "cost": cost, "rows": rows, **record}
        write_run(SWEEP, method, f"freeze={freeze}", f"seed={seed}", **options)


def run_set() -> RunSet:
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)


def summarize() -> Answer:
    return answer(run_set())


def test_a_setting_whose_range_lies_above_all_others_is_recommended_with_its_spread_and_cost():
    write_setting("requires_grad", "backbone", 0.90, 0.91, 0.92, flops=1e9)
    write_setting("requires_grad", "head", 0.70, 0.72, 0.74, flops=3e9)
    write_setting("requires_grad", "all", 0.10, 0.11, 0.12, flops=2e9)
    summary = summarize()
    assert (summary.headline, summary.is_bad) == ("Use requires_grad backbone", False)
    assert summary.sentence == (
        "With backbone frozen, its accuracy on held-out data is 0.91 (0.9 to 0.92, 3 seeds) and a step costs 1 GFLOP. That "
        "is above the whole range of requires_grad head and requires_grad all; with so few seeds, chance alone does that in "
        "1 of 10 comparisons. requires_grad backbone kept every frozen bit in all of its 3 runs."
    )


def test_of_settings_whose_ranges_overlap_the_cheapest_is_recommended():
    write_setting("zero_lr", "backbone", 0.90, 0.91, 0.92, flops=3e9)
    write_setting("detach", "backbone", 0.88, 0.8925, 0.905, flops=1e9)
    write_setting("detach", "head", 0.5, 0.55, 0.6, flops=1e8)
    summary = summarize()
    assert summary.headline == "Use detach backbone"
    assert (
        "Not told apart from it: zero_lr backbone, of which none is as cheap. The highest mean is that of zero_lr backbone, "
        "0.91 (0.9 to 0.92, 3 seeds). detach backbone kept every frozen bit"
    ) in summary.sentence
    assert [row[-1].text for row in ranking_table(run_set().ranked).rows] == ["", "not told apart", "lower"]


def test_of_equally_good_and_cheap_settings_requires_grad_is_recommended():
    for method in ("exclude", "requires_grad", "zero_lr"):
        write_setting(method, "backbone", 0.90, 0.91, 0.92, flops=1e9)
    summary = summarize()
    assert summary.headline == "Use requires_grad"
    assert "Not told apart from it: exclude and zero_lr." in summary.sentence


def test_without_costs_of_every_setting_none_is_called_the_cheapest():
    write_setting("exclude", "backbone", 0.90, 0.91, 0.92)
    write_setting("zero_lr", "backbone", 0.91, 0.92, 0.93, flops=1e9)
    assert summarize().headline == "Use zero_lr"
    assert "cheap" not in summarize().sentence


def test_the_cost_of_a_setting_is_the_mean_over_its_seeds_and_not_known_unless_each_has_one():
    write_setting("detach", "backbone", 0.5, flops=1e9)
    write_run(SWEEP, "detach", "freeze=backbone", "seed=1", cost={"flops_forward": 3e9, "flops_backward": 0})
    assert run_set().ranked[0].flops == 2e9
    write_run(SWEEP, "detach", "freeze=backbone", "seed=2")
    assert run_set().ranked[0].flops is None


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ((0.8, 0.85, 0.9), (0.6, 0.65, 0.7), True),
        ((0.8, 0.85, 0.9), (0.6, 0.65, 0.8), False),
        ((0.5, 0.6, 0.9), (0.6, 0.65, 0.7), False),
        ((0.8, 0.9), (0.6, 0.7), False),  # in a third of such cases by chance
        ((0.8, 0.9), (0.3, 0.4, 0.5, 0.6, 0.7), True),
        ((0.9,), (0.6, 0.7), False),
    ],
)
def test_two_settings_are_told_apart_either_way_round_only_if_their_ranges_are_apart_beyond_chance(one, other, apart):
    assert told_apart(one, other) == told_apart(other, one) == apart


def test_one_seed_each_claims_nothing_and_a_method_is_recommended_as_without_accuracy():
    write_setting("requires_grad", "backbone", 0.9)
    write_setting("zero_lr", "backbone", 0.5)
    assert summarize().sentence == (
        "It held in 1 of 1 run and trained the rest to the same bits as zero_lr. Held too: zero_lr, with no cost to "
        f"compare. {ONE_SEED}"
    )
    assert [row[-1].text for row in ranking_table(run_set().ranked).rows] == ["", "one seed: not known"]


@pytest.mark.parametrize(
    "record",
    [
        {"rows": LEAKED_ROWS},
        {"loss_not_finite_at": 1},
        {"rows": (HELD_ROWS[0], change_row("head.weight", "idle", cause="no_gradient"))},
    ],
)
def test_a_setting_that_leaked_or_proves_nothing_is_ranked_and_never_recommended(record):
    write_setting("zero_lr", "backbone", 0.98, 0.985, 0.99, **record)
    write_setting("requires_grad", "backbone", 0.90, 0.91, 0.92)
    write_setting("requires_grad", "head", 0.70, 0.71, 0.72)
    assert summarize().headline == "Use requires_grad backbone"
    assert [each.name for each in run_set().ranked][-1] == "zero_lr backbone"
    assert not run_set().ranked[-1].is_sound


def test_training_everything_may_be_the_best_and_is_said_to_freeze_nothing():
    none = {"_target_": "runner.methods.none.NoMethod"}
    write_setting("none", "backbone", 0.95, 0.955, 0.96, rows=LEAKED_ROWS, method=none)
    write_setting("requires_grad", "backbone", 0.90, 0.91, 0.92)
    assert summarize().headline == "Use none"
    assert summarize().sentence.endswith(" freezes nothing.")
    write_setting("requires_grad", "none", 0.97, 0.975, 0.98, rows=NOTHING_FROZEN)
    write_setting("none", "head", 0.99, 0.9925, 0.995, rows=LEAKED_ROWS, method=none, loss_not_finite_at=1)
    assert summarize().headline == "Use requires_grad none"
    assert summarize().sentence.endswith(" freezes nothing.")


def test_a_run_that_did_not_finish_has_no_part_in_the_ranking_and_is_counted_beside_what_held():
    write_setting("zero_lr", "backbone", 0.98, 0.985, 0.99)
    failed = {"evaluation": {"after": {"accuracy": 1.0}}, "status": "failed", "verdict": None, "rows": (), "losses": ()}
    write_run(SWEEP, "zero_lr", "freeze=backbone", "seed=3", **failed)
    write_setting("requires_grad", "backbone", 0.90, 0.91, 0.92)
    write_setting("requires_grad", "head", 0.70, 0.71, 0.72)
    assert {each.name: each.accuracies for each in run_set().ranked}["zero_lr backbone"] == [0.98, 0.985, 0.99]
    assert summarize().headline == "So far: use zero_lr backbone"
    assert summarize().sentence.endswith(
        "zero_lr backbone kept every frozen bit in 3 of its 4 runs; the others did not finish."
    )


@pytest.mark.parametrize(
    ("key", "is_ranked"),
    [("data.holdout", False), ("task", False), ("+data.test.root", False), ("data.epochs", True), ("optimizer.lr", True)],
)
def test_settings_are_ranked_only_where_they_are_measured_on_the_same_held_out_data(key, is_ranked):
    for value in ("1", "2"):
        write_run(SWEEP, "requires_grad", f"{key}={value}", evaluation={"after": {"accuracy": 0.5}})
    assert run_set().has_accuracies == is_ranked


def test_the_composed_config_says_what_is_held_out_whatever_was_given_on_the_command_line():
    for name, data in (("digits", "a"), ("cifar", "b")):
        folder = write_run(SWEEP, "requires_grad", f"experiment={name}", evaluation={"after": {"accuracy": 0.5}})
        (folder / ".hydra" / "config.yaml").write_text(f"data: {{_target_: {data}}}\n")
    assert not run_set().has_accuracies


def test_costs_of_other_batch_sizes_or_models_choose_nothing():
    for size, flops in ((4, 1e9), (64, 16e9)):
        for seed in range(3):
            evaluation = {"after": {"accuracy": 0.9 + 0.01 * seed + (0.001 if size == 64 else 0)}}
            cost = {"flops_forward": flops, "flops_backward": 0}
            write_run(SWEEP, "zero_lr", f"data.batch_size={size}", f"seed={seed}", evaluation=evaluation, cost=cost)
    assert summarize().headline == "Use zero_lr data.batch_size=64"
    assert "cheap" not in summarize().sentence


@pytest.mark.parametrize(("seeds", "text"), [((1, 3), ONE_SEED), ((2, 2), FEW_SEEDS), ((3, 1), ONE_SEED), ((1, 0), "")])
def test_too_few_seeds_are_said(seeds, text):
    write_setting("requires_grad", "backbone", *(0.9, 0.91, 0.92)[: seeds[0]])
    write_setting("zero_lr", "backbone", *(0.5, 0.51, 0.52)[: seeds[1]])
    assert ("seed" in summarize().sentence) == bool(text)
    assert text in summarize().sentence


def test_a_setting_of_one_seed_among_others_is_said_not_to_be_compared():
    write_setting("requires_grad", "backbone", 0.9, 0.91, 0.92)
    write_setting("requires_grad", "head", 0.5, 0.51, 0.52)
    write_setting("zero_lr", "backbone", 0.99)
    assert summarize().headline == "Use requires_grad backbone"
    assert summarize().sentence.endswith(" Not compared, with one seed: zero_lr backbone.")


def test_where_nothing_is_frozen_or_nothing_trains_a_setting_is_not_recommended_for_having_held():
    write_setting("requires_grad", "all", 0.97, 0.98, 0.99, rows=HELD_ROWS[:1])
    write_setting("requires_grad", "none", 0.94, 0.95, 0.96, rows=NOTHING_FROZEN)
    write_setting("requires_grad", "backbone", 0.90, 0.91, 0.92)
    assert summarize().headline == "Use requires_grad none"
    assert summarize().sentence.endswith(" freezes nothing.")
    assert [each.name for each in run_set().ranked][-1] == "requires_grad all"
    assert [each.trains_everything for each in run_set().ranked] == [True, False, False]


def test_what_leaked_and_is_better_than_the_first_is_not_called_lower():
    write_setting("zero_lr", "backbone", 0.97, 0.98, 0.99, rows=LEAKED_ROWS)
    write_setting("requires_grad", "backbone", 0.90, 0.91, 0.92)
    assert [row[-1].text for row in ranking_table(run_set().ranked).rows] == ["", "higher"]


def test_without_accuracy_nothing_is_ranked_and_the_summary_is_as_before():
    for method in ("requires_grad", "zero_lr"):
        write_run(SWEEP, method, evaluation={"after": {"loss": 0.5}})
    assert not run_set().has_accuracies
    assert "accuracy" not in str(summarize())


def comparison_rows():
    with (SWEEP / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_values_after_training_stand_in_comparison_csv_before_the_costs_and_are_empty_where_there_are_none():
    write_setting("zero_lr", "fc", 0.75, flops=1e9)
    write_run(SWEEP, "detach", evaluation={"after": {"loss": 1.5, "f1_score": 0.25}})
    write_run(SWEEP, "exclude")
    write_sweep_files(SWEEP)
    rows = {row["method"]: row for row in comparison_rows()}
    found = {name: (row["test_loss"], row["test_accuracy"], row["test_f1_score"]) for name, row in rows.items()}
    assert found == {"zero_lr": ("0.25", "0.75", ""), "detach": ("1.5", "", "0.25"), "exclude": ("", "", "")}
    columns = list(rows["detach"])
    first = columns.index("test_loss")
    assert columns[first : first + 4] == ["test_loss", "test_accuracy", "test_f1_score", "flops_forward"]


def test_the_page_of_a_sweep_has_a_table_of_accuracies_and_that_of_a_run_what_was_measured_before_and_after():
    write_setting("zero_lr", "fc", 0.75, 0.775, 0.8)
    write_setting("zero_lr", "backbone", 0.5, 0.55, 0.6)
    write_setting("detach", "fc", 0.7, 0.74, 0.78)
    write_sweep_files(SWEEP)
    page = (SWEEP / "report.html").read_text()
    table = ranking_table(run_set().ranked)
    cells = [[cell.text for cell in row] for row in table.rows]
    assert [(row[0], row[1], row[4], row[-1]) for row in cells] == [
        ("zero_lr fc", "0.775", "3", ""),
        ("detach fc", "0.74", "3", "not told apart"),
        ("zero_lr backbone", "0.55", "3", "lower"),
    ]
    assert "held-out accuracy" in page
    folder = run_folders(SWEEP)[0]
    write_run_page(folder)
    line = f"accuracy 0.1 -&gt; {read_run(folder).held_out['accuracy']:.4g}, loss 2 -&gt; "
    assert line in (folder / "report.html").read_text()


def test_a_damaged_evaluation_breaks_no_report_and_brings_no_markup_into_it():
    bad = [{"after": {"<script>x</script>": 0.5, "accuracy": float("nan")}}, {"after": 3}, [1], {"after": {"accuracy": "1"}}]
    for number, evaluation in enumerate([*bad, {"before": {"accuracy": 0.5}}, {"after": {"accuracy": 10**400}}]):
        write_run(SWEEP, "zero_lr", f"seed={number}", evaluation=evaluation)
    write_sweep_files(SWEEP)
    page = (SWEEP / "report.html").read_text()
    assert "<script>x</script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert not run_set().has_accuracies
    for folder in run_folders(SWEEP):
        write_run_page(folder)


def test_a_seed_that_is_still_running_is_not_held_against_a_setting():
    write_setting("zero_lr", "backbone", 0.90, 0.91, 0.92)
    write_setting("detach", "backbone", 0.50, 0.51, 0.52)
    folder = write_run(SWEEP, "zero_lr", "freeze=backbone", "seed=3")
    (folder / "run.json").unlink()
    (folder / ".running").touch()
    assert summarize().headline == "So far: use zero_lr"
    assert [each.name for each in run_set().ranked] == ["zero_lr", "detach"]


def test_a_tie_with_the_baseline_does_not_recommend_the_baseline():
    none = {"_target_": "runner.methods.none.NoMethod"}
    write_setting("none", "backbone", 0.90, 0.91, 0.92, rows=LEAKED_ROWS, method=none)
    write_setting("zero_lr", "backbone", 0.90, 0.91, 0.92)
    assert summarize().headline == "Use zero_lr"

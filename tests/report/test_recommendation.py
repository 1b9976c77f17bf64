"""The answer in words: which method to use, and by whose doing the others leaked."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.report.grouping import by_method, seed_groups
from runner.report.page.tables import commands_table, machines_table, seed_groups_table
from runner.report.prices import cheapest
from runner.report.recommendation import of_run, of_runs
from runner.runs.read import read_run, run_folders
from tests.made import HELD, LEAKED, make_run, make_sweep, tensor

SWEEP = Path("sweep")
RETURNED = (tensor("body.weight", "returned"), *HELD[1:])
IDLE = (HELD[0], tensor("head.weight", "idle", cause="no_gradient"))


def runs():
    return [read_run(folder) for folder in run_folders(SWEEP)]


def answer():
    return of_runs(runs())


def points() -> dict[str, list[str]]:
    return dict(answer().points)


def metered(forward: float, backward: float, saved: float) -> dict[str, float]:
    return {"flops_forward": forward, "flops_backward": backward, "saved_bytes": saved}


def test_the_method_that_held_and_left_the_rest_alike_is_to_be_used():
    make_sweep(SWEEP)
    assert (answer().headline, answer().lead) == (
        "Use requires_grad",
        "requires_grad kept every frozen bit in all of its 2 runs; zero_lr held too, but trained the rest otherwise.",
    )


def test_the_findings_say_who_held_leaked_trained_the_rest_and_did_not_finish():
    make_sweep(SWEEP)
    assert points() == {
        "Held": ["requires_grad and zero_lr: every frozen bit, at every look"],
        "Leaked": ["none: in 2 of 2 runs, by gradient"],
        "Trained the rest": [
            "otherwise: none, in 2 of 2 runs (the frozen part leaked)",
            "otherwise: zero_lr, in 2 of 2 runs (clipping: the frozen part's gradients enter the norm)",
        ],
        "Unfinished": ["detach: 1 of 1 run failed"],
    }


def test_among_equals_the_baseline_is_to_be_used_and_they_are_named():
    for method in ("requires_grad", "exclude", "zero_lr"):
        make_run(SWEEP, method)
    assert answer().lead == (
        "requires_grad kept every frozen bit in its one run. So did exclude and zero_lr, and trained the rest to the same "
        "bits. Among equals, it is torch’s own way."
    )


def test_once_costs_are_metered_the_cheapest_of_those_that_held_is_to_be_used():
    make_run(SWEEP, "requires_grad", cost=metered(10, 20, 5))
    make_run(SWEEP, "detach", cost=metered(10, 5, 5))
    make_run(SWEEP, "none", rows=LEAKED, cost=metered(1, 1, 1))
    assert answer().headline == "Use detach"
    assert answer().lead.endswith("It is the cheapest of them: 1.5e-08 GFLOP and 4.768e-06 MiB saved for backward a step.")


def test_among_equally_cheap_methods_torchs_own_way_is_to_be_used_and_the_tie_is_said():
    for method in ("detach", "requires_grad"):
        make_run(SWEEP, method, cost=metered(10, 5, 5))
    assert answer().headline == "Use requires_grad"
    assert answer().lead.endswith(", at the same cost: 1.5e-08 GFLOP and 4.768e-06 MiB saved for backward a step.")
    make_run(SWEEP, "zero_lr", cost=metered(10, 20, 5))
    assert "detach and it are the cheapest of them" in answer().lead


def test_of_equally_many_flops_the_fewer_saved_bytes_are_cheaper_and_only_shared_settings_count():
    make_run(SWEEP, "one", "clip=1", cost=metered(1, 1, 9))
    make_run(SWEEP, "two", "clip=1", cost=metered(1, 1, 3))
    make_run(SWEEP, "two", "clip=2", cost=metered(9, 9, 9))
    found = by_method(runs())
    assert cheapest(found) == (["two"], "2e-09 GFLOP and 2.861e-06 MiB saved for backward a step")
    assert cheapest({"two": found["two"][:1], "one": []}) is None


def test_a_method_that_saves_little_says_why_and_where():
    at_the_end = "the frozen part is at the end: backward still runs through it"
    make_run(SWEEP, "requires_grad", "freeze=fc", cost=metered(10, 20, 5) | {"why_small": at_the_end})
    make_run(SWEEP, "requires_grad", "freeze=backbone", cost=metered(10, 5, 5) | {"why_small": ""})
    assert ("Saves little", [f"requires_grad: {at_the_end}; under freeze=fc"]) in answer().points


def test_nothing_is_said_of_cost_where_none_is_metered():
    make_sweep(SWEEP)
    assert "cheap" not in str(answer()).lower()
    assert "cost" not in str(answer()).lower()


def test_a_leak_is_told_with_the_settings_that_it_happened_under():
    for scheduler in ("constant", "one_cycle"):
        leaked = (tensor("body.weight", "leaked", 0.1, "scheduler"), *HELD[1:])
        make_run(SWEEP, "zero_lr", f"scheduler={scheduler}", rows=leaked if scheduler == "one_cycle" else HELD)
        make_run(SWEEP, "exclude", f"scheduler={scheduler}")
    assert points()["Leaked"] == ["zero_lr: in 1 of 2 runs, by scheduler; under scheduler=one_cycle"]
    assert answer().headline == "Use exclude"


def test_what_was_put_back_comes_after_what_never_moved():
    make_run(SWEEP, "restore", rows=RETURNED)
    make_run(SWEEP, "exclude")
    assert answer().headline == "Use exclude"
    assert points()["Held"][1] == "restore: moved within a step, and was put back each time"


def test_where_no_method_held_the_nearest_is_named():
    for clip in ("1", "2", "3"):
        make_run(SWEEP, "zero_lr", f"clip={clip}", rows=LEAKED if clip == "1" else HELD)
        make_run(SWEEP, "none", f"clip={clip}", rows=LEAKED)
    assert answer().headline == "No method held"
    assert answer().lead == "zero_lr came nearest: it held in 2 of 3 runs."


@pytest.mark.parametrize(("rows", "headline"), [(HELD, "zero_lr held"), (LEAKED, "zero_lr leaked")])
def test_of_one_method_the_answer_is_whether_it_held(rows, headline):
    make_run(SWEEP, "zero_lr", "clip=1")
    make_run(SWEEP, "zero_lr", "clip=2", rows=rows)
    assert answer().headline == headline


def test_idle_parameters_are_told_with_the_cause():
    make_run(SWEEP, "zero_lr", "clip=1", rows=IDLE)
    make_run(SWEEP, "zero_lr", "clip=2")
    assert points()["Idle"] == ["1 run left something trainable unmoved: no_gradient"]
    assert dict(of_run(next(run for run in runs() if run.record["counts"]["idle"])).points)["Idle"] == [
        "head.weight (no_gradient)"
    ]


def test_where_nothing_was_frozen_or_finished_no_method_is_praised():
    make_run(SWEEP, "none", rows=HELD[1:])
    make_run(SWEEP, "zero_lr", rows=HELD[1:])
    assert answer().lead == "Nothing was declared frozen."
    only = make_run(Path("other"), status="failed", reason="it broke", verdict=None, rows=(), losses=())
    assert of_runs([read_run(only), read_run(only, "again")]).headline == "0 runs of 2 finished"
    assert (of_run(read_run(only)).headline, of_run(read_run(only)).lead) == ("Failed", "It broke.")


def test_methods_with_other_options_are_other_methods():
    make_run(SWEEP, "zero_lr", "method.guard=true", method={"_target_": "runner.methods.zero_lr.ZeroLr", "guard": True})
    make_run(SWEEP, "zero_lr", method={"_target_": "runner.methods.zero_lr.ZeroLr", "guard": False}, rows=LEAKED)
    assert set(by_method(runs())) == {"zero_lr guard=true", "zero_lr guard=false"}
    assert answer().headline == "Use zero_lr guard=true"


def test_a_method_of_ones_own_is_called_by_its_class_and_an_old_one_as_it_was_asked_for():
    make_run(SWEEP, "mine", method={"_target_": "my.package.Own"})
    make_run(SWEEP, "other", method={})
    assert set(by_method(runs())) == {"Own", "other"}


def test_over_seeds_the_table_has_the_worst_answer_and_mean_spread_and_n_of_the_losses():
    for seed, loss in enumerate((1.0, 2.0, 6.0)):
        make_run(SWEEP, "zero_lr", f"seed={seed}", rows=LEAKED if seed == 1 else HELD, losses=(9.0, loss))
    make_run(SWEEP, "none", "seed=0", losses=(9.0, 4.0))
    sheet = seed_groups_table(runs())
    assert sheet is not None
    heads = [column.name for column in sheet.columns]
    rows = {row[0].text: dict(zip(heads, (entry.text for entry in row), strict=True)) for row in sheet.rows}
    assert [rows["zero_lr"][key] for key in ("worst answer", "loss, mean", "spread", "n")] == ["leaked", "3", "2.646", "3"]
    assert [rows["none"][key] for key in ("worst answer", "loss, mean", "spread", "n")] == ["held", "4", "", "1"]
    assert [cell.outcome for cell in seed_groups(runs())] == ["held", "leaked"]


def test_without_a_second_seed_there_is_no_table_over_seeds():
    make_run(SWEEP, "zero_lr")
    make_run(SWEEP, "none")
    assert seed_groups_table(runs()) is None


def test_a_command_is_quoted_for_the_shell_and_configs_show_where_they_differ():
    make_run(SWEEP, "zero_lr", 'freeze.patterns=["a b", "re:x.*"]', "tag=$(rm -rf x)")
    make_run(SWEEP, "none")
    texts = [entry.text for row in commands_table(runs()).rows for entry in row]
    assert "python -m runner method=zero_lr 'freeze.patterns=[\"a b\", \"re:x.*\"]' 'tag=$(rm -rf x)'" in texts
    assert "method._target_=runner.methods.none.None" in texts


def test_machines_and_versions_are_told_where_they_differ():
    make_run(SWEEP, "zero_lr", threads=2, versions={"torch": "2.6.0"})
    make_run(SWEEP, "none")
    same, sheet = machines_table(runs())
    assert "device cpu" in same
    rows = [[entry.text for entry in row] for row in sheet.rows]
    assert ["torch", "2.6.0", "1"] in rows
    assert ["threads", "2", "1"] in rows

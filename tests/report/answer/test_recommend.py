"""The summary in words: which method to use, and why the others leaked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from runner.report.answer.answer import Answer, answer
from runner.report.answer.recommend import cost_table, relation
from runner.report.compare.grouping import group_by_method
from runner.report.compare.run_set import Planned, RunSet
from runner.runs.read import read_run, run_folders
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, remove_rows, write_run, write_sweep

SWEEP = Path("sweep")
RETURNED = (change_row("body.weight", "returned"), *HELD_ROWS[1:])
IDLE = (HELD_ROWS[0], change_row("head.weight", "idle", cause="no_gradient"))


def runs():
    return [read_run(folder) for folder in run_folders(SWEEP)]


def run_set(**others) -> RunSet:
    return RunSet.of(runs(), "sweep", SWEEP, **others)


def summary() -> Answer:
    return answer(run_set())


def summarize_run(run) -> Answer:
    return answer(RunSet([run], "run", run.folder))


def findings() -> dict[str, list[str]]:
    return dict(summary().findings)


def cost(forward: float, backward: float, saved: float) -> dict[str, float]:
    return {"flops_forward": forward, "flops_backward": backward, "saved_bytes": saved}


def test_the_method_that_held_and_trained_the_same_bits_is_recommended():
    write_sweep(SWEEP)
    assert (summary().headline, summary().sentence) == (
        "So far: use requires_grad",
        "It held in 2 of 2 runs. zero_lr held too, but trained the other parameters differently.",
    )


def test_the_findings_list_which_methods_held_leaked_trained_other_bits_and_how_many_are_not_done():
    write_sweep(SWEEP)
    assert findings() == {
        "Held": ["requires_grad and zero_lr: every frozen bit, at every comparison"],
        "Trained part": [
            "other bits: zero_lr, in 2 of 2 runs (clipping: the frozen part's gradients enter the norm)",
        ],
        "Drifted": [
            "buffers that were not frozen, such as the statistics of BatchNorm, changed in 6 of 6 runs; that is normal in "
            "train mode, and freeze.buffers=frozen stops it"
        ],
        "Baseline": ["method=none does nothing about what is declared frozen, and trains everything"],
    }
    assert summary().left == "1 of 7 runs is not done: 1 failed."


def test_of_equally_good_methods_requires_grad_is_recommended_and_the_others_are_named():
    for method in ("requires_grad", "exclude", "zero_lr"):
        write_run(SWEEP, method)
    assert summary().sentence == (
        "It held in 1 of 1 run and trained the rest to the same bits as exclude and zero_lr. "
        "Held too: exclude and zero_lr, with no cost to compare."
    )


def test_where_every_parameter_is_frozen_no_method_is_recommended_and_nothing_is_said_of_the_others():
    all_frozen = (change_row("body.weight", "held"), change_row("head.weight", "held"))
    write_run(SWEEP, "requires_grad", rows=all_frozen)
    assert summarize_run(runs()[0]).headline == "Held"
    assert summarize_run(runs()[0]).sentence.startswith("2 of 2 frozen tensors kept every bit; every parameter is frozen")
    write_run(SWEEP, "requires_grad", "seed=1", rows=all_frozen)
    assert (summary().headline, summary().sentence) == (
        "requires_grad held",
        "It kept every frozen bit in 2 of 2 runs. No parameter was trained.",
    )
    write_run(SWEEP, "zero_lr", rows=all_frozen)
    write_run(SWEEP, "none", rows=(change_row("body.weight", "leaked", 0.25, "gradient"), all_frozen[1]))
    assert (summary().headline, summary().sentence) == (
        "Held, but nothing was trained",
        "requires_grad and zero_lr kept every frozen bit, in runs that trained no parameter.",
    )
    assert "Trained part" not in findings()
    write_run(SWEEP, "requires_grad", "freeze=head")
    assert summary().headline == "Use requires_grad"


def test_that_others_trained_the_same_bits_is_said_only_if_each_was_compared():
    write_run(SWEEP, "requires_grad", "clip=1")
    write_run(SWEEP, "zero_lr", "clip=2")  # no run of requires_grad with this setting
    assert summary().sentence == "It held in 1 of 1 run. Held too: zero_lr, with no cost to compare."


def test_that_others_trained_the_same_bits_is_said_only_if_each_run_of_both_was_compared_and_identical():
    for clip in ("1", "2"):
        write_run(SWEEP, "detach", f"clip={clip}", cost=cost(1, 1, 1))
        write_run(SWEEP, "zero_lr", f"clip={clip}", cost=cost(9, 9, 9))
    write_run(SWEEP, "requires_grad", "clip=1", **NAN)
    assert "same bits" not in summary().sentence  # nothing to compare with
    write_run(SWEEP, "requires_grad", "clip=2")
    assert "same bits" not in summary().sentence  # compared in one of two


@pytest.mark.parametrize("defect", ["NaN", "failed"])
def test_what_no_other_method_was_tried_with_is_not_held_against_a_method(defect):
    more = NAN if defect == "NaN" else {"status": "failed", "reason": "it broke", "verdict": None, "rows": (), "losses": ()}
    for method in ("requires_grad", "zero_lr"):
        write_run(SWEEP, method, "optimizer.lr=0.1")
    write_run(SWEEP, "requires_grad", "optimizer.lr=0.2")
    write_run(SWEEP, "requires_grad", "optimizer.lr=1e9", **more)
    assert summary().headline.casefold().endswith("use requires_grad")
    write_run(SWEEP, "zero_lr", "optimizer.lr=1e9")
    assert summary().headline.casefold().endswith("use zero_lr")


def test_a_method_that_is_proven_in_fewer_than_half_of_its_runs_is_not_recommended():
    for method in ("requires_grad", "zero_lr"):
        write_run(SWEEP, method)
        for clip in ("1", "2"):
            write_run(SWEEP, method, f"clip={clip}", **NAN)
    assert summary().headline == "No method is proven"
    assert summary().sentence.startswith("requires_grad held in 1 of 3 runs (2 got a loss that is NaN or infinite).")


def test_where_costs_are_known_the_cheapest_of_the_methods_that_held_is_recommended():
    write_run(SWEEP, "requires_grad", cost=cost(10, 20, 5))
    write_run(SWEEP, "detach", cost=cost(10, 5, 5))
    write_run(SWEEP, "none", rows=LEAKED_ROWS, cost=cost(1, 1, 1))
    assert summary().headline == "Use detach"
    assert summary().sentence.endswith("Held too: requires_grad, at a higher cost.")


def test_of_equally_cheap_methods_requires_grad_is_recommended_and_the_tie_is_mentioned():
    for method in ("detach", "requires_grad"):
        write_run(SWEEP, method, cost=cost(10, 5, 5))
    assert summary().headline == "Use requires_grad"
    assert summary().sentence.endswith("Held too: detach, at the same cost.")
    write_run(SWEEP, "zero_lr", cost=cost(10, 20, 5))
    write_run(SWEEP, "exclude")
    assert summary().sentence.endswith(
        "Held too: detach, at the same cost; zero_lr, at a higher cost; exclude, with no cost to compare."
    )


def test_costs_are_compared_only_where_the_method_alone_differs_and_never_averaged():
    write_run(SWEEP, "one", "freeze=fc", cost=cost(1, 1, 9))
    write_run(SWEEP, "two", "freeze=fc", cost=cost(1, 1, 3))
    write_run(SWEEP, "two", "freeze=backbone", cost=cost(9, 9, 9))
    assert (
        relation(cost_table(run_set().settings), "two", "one") == "cheaper"
    )  # by what is saved for backward, as FLOPs are equal
    assert relation(cost_table(run_set().settings), "one", "two") == "dearer"
    write_run(SWEEP, "one", "freeze=backbone", cost=cost(1, 1, 1))
    assert relation(cost_table(run_set().settings), "two", "one") == "mixed"
    write_run(SWEEP, "three", "freeze=head", cost=cost(1, 1, 1))
    assert relation(cost_table(run_set().settings), "three", "one") == "unknown"


def test_where_the_cheapest_depends_on_the_setting_no_method_is_called_the_cheapest():
    for freeze, flops in (("fc", (1, 9)), ("backbone", (9, 1))):
        write_run(SWEEP, "requires_grad", f"freeze={freeze}", cost=cost(flops[0], 1, 1))
        write_run(SWEEP, "detach", f"freeze={freeze}", cost=cost(flops[1], 1, 1))
    assert summary().headline == "Use requires_grad"
    assert summary().sentence.endswith("Held too: detach, cheaper in one setting and dearer in another.")


def test_the_cost_is_told_for_each_setting_relative_to_training_everything():
    for freeze, share in (("fc", 1.0), ("backbone", 0.341)):
        for method in ("requires_grad", "exclude"):
            write_run(SWEEP, method, f"freeze={freeze}", cost=cost(1, 1, 1) | {"flops_share": share})
    assert (
        "costs 34% of the FLOPs of training everything with freeze=backbone and 100% with freeze=fc." in summary().sentence
    )
    for number in range(3):
        write_run(SWEEP, "requires_grad", f"freeze=x{number}", cost=cost(1, 1, 1) | {"flops_share": 0.5})
    assert "costs 34% to 100% of the FLOPs of training everything, depending on the setting." in summary().sentence


def test_runs_that_have_not_begun_are_counted_as_not_done():
    folders = write_sweep(SWEEP)
    planned = Planned(SWEEP, (*(folder.name for folder in folders), "zero_lr__fc__s0__00000000"), "the command")
    assert answer(run_set(planned=[planned])).left == "2 of 8 runs are not done: 1 failed, 1 not begun."


def test_without_cost_figures_the_summary_does_not_mention_cost():
    write_sweep(SWEEP)
    assert "cheap" not in str(summary()).lower()
    assert "cost" not in str(summary()).lower()


def test_a_leak_is_listed_with_its_settings():
    for scheduler in ("constant", "one_cycle"):
        leaked = (change_row("body.weight", "leaked", 0.1, "scheduler"), *HELD_ROWS[1:])
        write_run(SWEEP, "zero_lr", f"scheduler={scheduler}", rows=leaked if scheduler == "one_cycle" else HELD_ROWS)
        write_run(SWEEP, "exclude", f"scheduler={scheduler}")
    assert findings()["Leaked"] == ["zero_lr: in 1 of 2 runs, cause: scheduler; with scheduler=one_cycle"]
    assert summary().headline == "Use exclude"


UNTRAINED = {"rows": IDLE}
NAN = {"losses": (2.0, math.nan), "loss_last": None, "loss_not_finite_at": 2}
NAN_IN_BETWEEN = {"loss_not_finite_at": 1}
OLD_NAN = {"losses": (2.0, math.nan), "loss_last": None}  # of an older version, which did not record the step
NO_STEP = {"losses": (), "looks": []}
DEFECTIVE = [UNTRAINED, NAN, NAN_IN_BETWEEN, OLD_NAN, NO_STEP]


@pytest.mark.parametrize("defect", DEFECTIVE)
def test_a_run_with_a_defect_never_makes_its_method_the_recommended_one(defect):
    write_run(SWEEP, "requires_grad", cost=cost(1, 1, 1), **defect)
    write_run(SWEEP, "detach", cost=cost(9, 9, 9))
    assert (summary().headline, summary().is_bad) == ("Use detach", False)
    assert summary().sentence == "It held in 1 of 1 run. Some runs of requires_grad prove nothing."


@pytest.mark.parametrize(
    ("defect", "heading", "end"),
    [
        (UNTRAINED, "Nothing trained", "trained nothing"),
        (NAN, "Loss not finite", "got a loss that is NaN or infinite"),
        (NO_STEP, "No step", "made no step"),
    ],
)
def test_a_run_with_a_defect_is_not_counted_for_its_method_and_is_listed_with_its_settings(defect, heading, end):
    for method in ("requires_grad", "detach"):
        write_run(SWEEP, method, "clip=1")
        write_run(SWEEP, method, "clip=2", **(defect if method == "detach" else {}))
    write_run(SWEEP, "zero_lr", "clip=1", rows=LEAKED_ROWS)
    assert summary().headline == "Use requires_grad"
    assert summary().sentence.endswith(". Some runs of detach prove nothing; zero_lr leaked.")
    assert findings()[heading] == ["detach: in 1 of 2 runs; with clip=2"]
    write_run(SWEEP, "requires_grad", "clip=3", **defect)
    assert summary().sentence.startswith(f"It held in 2 of 3 runs (1 {end})")


@pytest.mark.parametrize("defect", DEFECTIVE)
def test_if_every_run_has_a_defect_no_method_is_recommended(defect):
    write_run(SWEEP, "detach", "clip=1", **defect)
    write_run(SWEEP, "detach", "clip=2", **defect)
    assert (summary().headline, summary().is_bad) == ("detach is not proven", True)
    write_run(SWEEP, "exclude", "clip=1", **defect)
    assert (summary().headline, summary().is_bad) == ("No method held", True)
    assert summary().sentence.startswith("Of 3 runs, 3 ")
    write_run(SWEEP, "zero_lr", "clip=1", rows=LEAKED_ROWS)
    assert summary().sentence.endswith(" and 1 leaked.")


def test_runs_with_a_defect_are_not_compared_with_requires_grad():
    write_run(SWEEP, "requires_grad", **NAN)
    write_run(SWEEP, "zero_lr")
    write_run(SWEEP, "requires_grad", "clip=1")
    write_run(SWEEP, "zero_lr", "clip=1", rows=IDLE)
    assert "Trained part" not in findings()


def test_a_leak_in_a_run_with_a_defect_is_still_a_leak():
    write_run(SWEEP, "zero_lr", rows=(LEAKED_ROWS[0], IDLE[1]), **NAN)
    (run,) = runs()
    assert summarize_run(run).headline == "Leaked, loss not finite and nothing trained"
    assert summarize_run(run).is_bad
    write_run(SWEEP, "zero_lr", "seed=1", rows=(LEAKED_ROWS[0], IDLE[1]), **NAN)
    assert summary().headline == "zero_lr leaked"
    assert {"Leaked", "Nothing trained", "Loss not finite"} <= findings().keys()


def test_of_runs_that_differ_in_the_seed_a_defect_is_worse_than_held_and_better_than_a_leak():
    for seed, more in enumerate(({}, NAN, UNTRAINED)):
        write_run(SWEEP, "zero_lr", f"seed={seed}", **more)
    assert [setting.outcome for setting in run_set().settings] == ["nothing trained"]
    write_run(SWEEP, "zero_lr", "seed=3", rows=LEAKED_ROWS)
    assert [setting.outcome for setting in run_set().settings] == ["leaked"]


def test_a_run_that_was_interrupted_says_so_beside_what_held():
    for rows, headline in ((HELD_ROWS, "Held, but interrupted"), (IDLE, "Held, but nothing trained and interrupted")):
        reason = "interrupted after step 2 of 9"
        run = read_run(write_run(SWEEP, status="interrupted", reason=reason, rows=rows, name=headline))
        assert summarize_run(run).headline == headline
        assert "interrupted after step 2 of 9" in summarize_run(run).sentence
        assert run.outcome == "interrupted"


def test_what_makes_a_run_worth_less_stands_in_its_headline():
    run = read_run(write_run(SWEEP, losses=(1.0, 2.0)))
    assert summarize_run(run).headline == "Held, but loss rose"
    assert not summarize_run(run).is_bad


def test_a_run_whose_rows_cannot_be_read_is_not_said_to_have_frozen_nothing():
    folder = write_run(SWEEP, cost={"flops_share": 0.34})
    (folder / "changes.csv").unlink()
    found = summarize_run(read_run(folder))
    assert (found.headline, found.is_bad) == ("Held, but 3 rows missing", False)
    assert found.sentence == (
        "1 of 1 frozen tensor kept every bit; 3 of 3 rows of changes.csv are missing: 1 held, 1 trained, 1 drifted. "
        "A step costs 34% of the FLOPs of training everything."
    )


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_a_run_leaked_also_where_the_rows_that_leaked_are_missing(status):
    rows = (*LEAKED_ROWS, change_row("other.weight", "held"), change_row("tail.weight", "idle"))
    folder = write_run(SWEEP, rows=rows, status=status)
    remove_rows(folder, "body", "tail")
    found = summarize_run(read_run(folder))
    assert found.headline.startswith("Leaked")
    assert found.is_bad
    assert "1 of 2 frozen tensors changed; 1 of 2 trainable parameters did not change; 2 of 5 rows" in found.sentence
    assert ("Idle", ["1 whose rows are missing"]) in found.findings
    remove_rows(folder, "body", "head", "norm", "other")
    assert summarize_run(read_run(folder)).headline.startswith("Leaked")
    (folder / "changes.csv").unlink()
    assert summarize_run(read_run(folder)).headline.startswith("Leaked")


def test_a_run_leaked_if_its_counts_or_its_rows_alone_say_so():
    counts = {"held": 1, "trained": 1, "drifted": 1}
    by_rows = read_run(write_run(SWEEP, rows=LEAKED_ROWS, verdict="held", counts=counts, name="rows"))
    by_counts = read_run(write_run(SWEEP, verdict="held", counts={"leaked": 1}, name="counts"))
    by_verdict = read_run(write_run(SWEEP, verdict="leaked", counts={}, name="verdict"))
    for run in (by_rows, by_counts, by_verdict):
        assert run.outcome == "leaked"
        assert summarize_run(run).headline.startswith("Leaked")
        assert summarize_run(run).is_bad


def test_a_run_without_a_verdict_is_not_said_to_have_held():
    run = read_run(write_run(SWEEP, verdict=None))
    assert (summarize_run(run).headline, run.outcome) == ("No verdict", "finished")


def test_causes_that_are_lost_with_their_rows_are_not_recorded():
    folder = write_run(SWEEP, rows=(*LEAKED_ROWS, change_row("other.weight", "leaked", 0.1, "weight_decay")))
    write_run(SWEEP, "exclude")
    remove_rows(folder, "other")
    assert findings()["Leaked"] == ["zero_lr: in 1 of 1 run, cause: gradient and others not recorded"]


def test_a_finished_run_whose_verdict_cannot_be_read_proves_nothing():
    write_run(SWEEP, "zero_lr", verdict=["held"])
    write_run(SWEEP, "zero_lr", "seed=1", verdict=["held"])
    assert (summary().headline, summary().sentence) == ("zero_lr is not proven", "Of 2 runs, 2 had no verdict.")
    write_run(SWEEP, "exclude", verdict="wonderful")
    assert summary().sentence == "Of 3 runs, 3 had no verdict."


def test_freezing_everything_is_no_defect():
    write_run(SWEEP, "zero_lr", rows=HELD_ROWS[:1])
    write_run(SWEEP, "none", rows=LEAKED_ROWS)
    assert (summary().headline, summary().is_bad) == ("Held, but nothing was trained", False)


def test_a_method_that_never_moves_frozen_tensors_is_preferred_to_one_that_puts_them_back():
    write_run(SWEEP, "restore", rows=RETURNED)
    write_run(SWEEP, "exclude")
    assert summary().headline == "Use exclude"
    assert findings()["Held"][1] == "restore: moved within a step, and was put back each time"


def test_if_no_method_held_the_one_with_most_held_runs_is_named():
    for clip in ("1", "2", "3"):
        write_run(SWEEP, "zero_lr", f"clip={clip}", rows=LEAKED_ROWS if clip == "1" else HELD_ROWS)
        write_run(SWEEP, "none", f"clip={clip}", rows=LEAKED_ROWS)
    assert summary().headline == "No method held"
    assert summary().sentence == "zero_lr came nearest: it held in 2 of 3 runs."


@pytest.mark.parametrize(("rows", "headline"), [(HELD_ROWS, "zero_lr held"), (LEAKED_ROWS, "zero_lr leaked")])
def test_with_one_method_the_summary_says_whether_it_held(rows, headline):
    write_run(SWEEP, "zero_lr", "clip=1")
    write_run(SWEEP, "zero_lr", "clip=2", rows=rows)
    assert summary().headline == headline


def test_idle_parameters_are_listed_with_the_cause():
    write_run(SWEEP, "zero_lr", "clip=1", rows=IDLE)
    write_run(SWEEP, "zero_lr", "clip=2")
    assert findings()["Idle"] == ["something trainable did not move in 1 run: no_gradient"]
    assert dict(summarize_run(next(run for run in runs() if run.record["counts"]["idle"])).findings)["Idle"] == [
        "head.weight (no_gradient)"
    ]


def test_if_nothing_was_frozen_or_finished_no_method_is_recommended():
    write_run(SWEEP, "none", rows=HELD_ROWS[1:])
    write_run(SWEEP, "zero_lr", rows=HELD_ROWS[1:])
    assert summary().sentence == "Nothing was declared frozen."
    failed = write_run(Path("other"), status="failed", reason="it broke", verdict=None, rows=(), losses=())
    both = RunSet([read_run(failed), read_run(failed, "again")], "two", failed)
    assert answer(both).headline == "0 of 2 runs finished"
    assert (summarize_run(read_run(failed)).headline, summarize_run(read_run(failed)).sentence) == ("Failed", "It broke.")


def test_a_method_with_different_options_counts_as_several_methods():
    write_run(SWEEP, "zero_lr", "method.guard=true", method={"_target_": "runner.methods.zero_lr.ZeroLr", "guard": True})
    write_run(SWEEP, "zero_lr", method={"_target_": "runner.methods.zero_lr.ZeroLr", "guard": False}, rows=LEAKED_ROWS)
    assert set(group_by_method(runs())) == {"zero_lr guard=true", "zero_lr guard=false"}
    assert summary().headline == "Use zero_lr guard=true"


def test_a_users_method_is_named_by_its_class_and_one_without_a_record_by_its_override():
    write_run(SWEEP, "mine", method={"_target_": "my.package.Own"})
    write_run(SWEEP, "other", method={})
    assert set(group_by_method(runs())) == {"Own", "other"}


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("freeze.patterns: 'fc' matches no parameter", "freeze.patterns: 'fc' matches no parameter."),
        ("the loss of KeyError: 'x'", "The loss of KeyError: 'x'."),
        ("", ""),
    ],
)
def test_the_reason_of_a_failed_run_is_a_sentence_that_leaves_config_keys_as_they_are(reason, sentence):
    folder = write_run(SWEEP, status="failed", reason=reason, verdict=None, rows=(), losses=())
    assert summarize_run(read_run(folder)).sentence == sentence


def test_a_run_that_leaked_before_it_was_interrupted_is_a_leak_of_its_method():
    write_run(SWEEP, "zero_lr", "seed=0")
    write_run(SWEEP, "zero_lr", "seed=1", rows=LEAKED_ROWS, status="interrupted", reason="interrupted after step 2 of 9")
    assert summary().headline == "zero_lr leaked"
    assert findings()["Leaked"] == ["zero_lr: in 1 of 2 runs, cause: gradient"]
    assert [setting.outcome for setting in run_set().settings] == ["leaked"]
    write_run(SWEEP, "exclude", "seed=0")
    assert summary().headline == "So far: use exclude"


def test_the_baseline_that_trains_everything_is_no_leak_and_no_nothing():
    write_run(SWEEP, "requires_grad")
    write_run(SWEEP, "none", rows=LEAKED_ROWS, method={"_target_": "runner.methods.none.NoMethod"}, trained_digest="other")
    assert "Leaked" not in findings()
    assert findings()["Baseline"] == ["method=none does nothing about what is declared frozen, and trains everything"]
    assert "none" not in str(findings().get("Trained part"))


NONE = {"method": {"_target_": "runner.methods.none.NoMethod"}, "rows": LEAKED_ROWS}
FAILED = {"status": "failed", "reason": "it broke", "verdict": None, "rows": (), "losses": ()}


def test_the_baseline_is_never_said_to_have_leaked():
    write_run(SWEEP, "none", **NONE)
    write_run(SWEEP, "none", "seed=1", **NONE)
    assert (summary().headline, summary().sentence) == ("none is the baseline", "It freezes nothing; 2 runs finished.")
    write_run(SWEEP, "zero_lr", **FAILED)
    assert (summary().headline, summary().sentence) == (
        "No method is proven",
        "Of the methods that freeze, no run has finished.",
    )


def test_what_differs_on_another_machine_is_not_held_against_a_method():
    write_run(SWEEP, "requires_grad", cost=cost(9, 9, 9))
    write_run(SWEEP, "zero_lr", device="cuda", trained_digest="other", cost=cost(1, 1, 1))
    assert summary().headline == "Use requires_grad"
    assert "trained the other parameters differently" not in summary().sentence


def test_a_cost_that_is_not_known_is_no_smaller_cost():
    write_run(SWEEP, "requires_grad", cost=cost(10, 5, 1000))
    write_run(SWEEP, "zero_lr", cost={"flops_forward": 10, "flops_backward": 5})
    assert summary().headline == "Use requires_grad"
    assert summary().sentence.endswith("Held too: zero_lr, with no cost to compare.")


def test_the_cost_of_one_setting_is_not_said_of_all():
    write_run(SWEEP, "zero_lr", "freeze=fc", cost=cost(1, 1, 1) | {"flops_share": 0.34})
    write_run(SWEEP, "zero_lr", "freeze=layer1")
    assert "34% of the FLOPs of training everything (not known in 1 of 2 settings)" in summary().sentence


def test_the_same_bits_in_some_of_the_runs_are_said_of_these():
    write_run(SWEEP, "requires_grad", "clip=0")
    for clip in range(3):
        write_run(SWEEP, "zero_lr", f"clip={clip}")
    assert findings()["Trained part"] == ["same bits as under requires_grad: zero_lr (1 of 3 runs compared)"]


def test_two_classes_of_the_same_name_are_two_methods():
    write_run(SWEEP, "one", method={"_target_": "a.Mine"})
    write_run(SWEEP, "two", method={"_target_": "b.Mine"}, rows=LEAKED_ROWS)
    assert set(group_by_method(runs())) == {"a.Mine", "b.Mine"}
    assert summary().headline == "Use a.Mine"


def test_a_run_whose_loss_was_not_finite_is_not_called_held_where_its_rows_are_missing():
    folder = write_run(SWEEP, **NAN)
    (folder / "changes.csv").unlink()
    found = summarize_run(read_run(folder))
    assert "loss not finite" in found.headline.lower()
    assert found.is_bad

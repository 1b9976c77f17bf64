"""Frozen layers that depend on more than weights and input are never shared, with the reason; a changed one is noticed."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

from runner.methods.prefix.shared.purity import calls_outside
from tests.methods.prefix.shared import impure
from tests.methods.prefix.shared.test_sweeps import SWEEP, assert_equal_to_runs_alone, records, shared

TARGET = "tests.methods.prefix.shared.impure"
CUSTOM = ("model=custom", "model.input=[8]", "model.classes=3", "model.head=head", "threads=1")
FROZEN = (*CUSTOM, "freeze=backbone", "freeze.buffers=frozen", "batches=4", "data.epochs=12", "data.batch_size=4")
KEEPS_STATE = "a forward pass changes attributes of the model or of the task, or tensors of the frozen prefix"
REASONS = {
    "Clock": "the frozen prefix reads the clock (time.time)",
    "Date": "the frozen prefix reads the clock (datetime.now)",
    "File": "the frozen prefix reads a file (",
    "Environment": "the frozen prefix reads the system (posix.listdir)",
    "OwnGenerator": KEEPS_STATE,
    "Counting": KEEPS_STATE,
    "GlobalCounting": KEEPS_STATE,
    "Buffer": "",
    "AfterTheBoundary": KEEPS_STATE,
    "FirstCall": KEEPS_STATE,
    "EnvironmentVariable": "the frozen prefix reads the system (os.",
    "ContainsItself": "a list or dict that contains itself",
    "UsesTheHead": "",
}


def sweep(cli, *overrides: str) -> None:
    """Carry out two runs that differ in their learning rate."""
    code, _, err = cli("-m", *FROZEN, "optimizer.lr=0.1,0.01", *overrides, f"hydra.sweep.dir={SWEEP}")
    assert code == 0, err


@pytest.mark.parametrize("name", REASONS)
def test_a_prefix_that_depends_on_more_than_its_weights_and_input_is_never_shared(name, cli):
    Path("factor.txt").write_text("1.5")
    sweep(cli, f"model.build._target_={TARGET}.{name}")
    assert {each["batches_stored"] for each in shared()} == {0}
    (reason,) = {each["reason"] for each in shared()}
    assert REASONS[name] in reason
    assert reason


@pytest.mark.parametrize("name", ["Random", pytest.param("NumpyRandom", marks=pytest.mark.long)])
def test_layers_before_one_that_draws_random_numbers_are_shared_and_it_is_named(name, cli):
    build = f"model.build._target_={TARGET}.{name}"
    sweep(cli, build)
    assert {each["layer"] for each in shared()} == {"body.layer"}
    assert sum(each["batches_stored"] for each in shared()) == 4
    assert all(each["reason"].startswith("the frozen prefix gives different outputs") for each in shared())
    assert_equal_to_runs_alone(cli, *FROZEN, "optimizer.lr=0.1,0.01", build)


def test_a_global_that_changes_between_two_runs_shows(cli, monkeypatch):
    keep = ("sweep.keep=true", f"model.build._target_={TARGET}.Global", f"hydra.sweep.dir={SWEEP}")
    assert cli("-m", *FROZEN, "optimizer.lr=0.1", *keep)[0] == 0
    monkeypatch.setattr(impure, "FACTOR", 2.0)
    assert cli("-m", *FROZEN, "optimizer.lr=0.1,0.01", *keep)[0] == 0
    assert [each["batches_stored"] for each in shared()] == [4, 4]


def test_a_prefix_whose_output_for_a_sample_depends_on_the_others_is_not_shared(cli):
    sweep(cli, f"model.build._target_={TARGET}.BatchDependent")
    assert {each["reason"] for each in shared()} == {
        "the frozen prefix's output for a sample depends on the other samples of its batch"
    }


LONG = [pytest.param(begin, marks=pytest.mark.long) for begin in (2, 3, 5, 11, 47)]


@pytest.mark.parametrize("begin", [1, 48, *LONG])
def test_a_write_that_leaves_no_trace_is_noticed_and_the_run_is_what_it_is_alone(begin, cli):
    optimizer = (
        "optimizer=custom",
        f"optimizer._target_={TARGET}.WritesUnseen",
        "++optimizer.lr=0.1",
        "~optimizer.momentum",
    )
    overrides = (*FROZEN, f"model.build._target_={TARGET}.Net", *optimizer[:3], f"++optimizer.begin={begin}", "clip=1,2")
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert {record["verdict"] for record in records().values()} == {"leaked"}
    assert_equal_to_runs_alone(cli, *overrides)


def test_a_write_in_the_forward_pass_is_noticed_and_the_run_is_what_it_is_alone(cli):
    overrides = (*FROZEN, f"model.build._target_={TARGET}.WritesInForward", "optimizer.lr=0.1,0.01")
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert_equal_to_runs_alone(cli, *overrides)


@pytest.mark.parametrize("schedule", [("schedule=gradual",), ("schedule=after", "schedule.step=9")])
def test_a_prefix_that_thaws_is_shared_only_while_it_is_frozen(schedule, cli):
    overrides = (*FROZEN, f"model.build._target_={TARGET}.Net", *schedule, "optimizer.lr=0.1,0.01")
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert sum(each["batches_read"] for each in shared()) > 0
    assert {each["reason"] for each in shared()} == {""}  # that nothing is frozen in one phase is none
    assert_equal_to_runs_alone(cli, *overrides)


@pytest.mark.parametrize("begin", [9, *(pytest.param(begin, marks=pytest.mark.long) for begin in (2, 21))])
def test_a_write_without_a_trace_that_is_taken_back_is_noticed(begin, cli):
    optimizer = (
        "optimizer=custom",
        f"optimizer._target_={TARGET}.Perturbs",
        "++optimizer.lr=0.1",
        f"++optimizer.begin={begin}",
    )
    overrides = (*FROZEN, f"model.build._target_={TARGET}.Net", *optimizer, "clip=1,2")
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert_equal_to_runs_alone(cli, *overrides)


def test_a_task_that_changes_itself_is_not_shared(cli, monkeypatch):
    monkeypatch.setattr(impure.annealed, "scale", 1.0)
    sweep(cli, f"model.build._target_={TARGET}.Net", "task=custom", f"task._target_={TARGET}.annealed")
    assert {each["batches_stored"] for each in shared()} == {0}


@pytest.mark.long
@pytest.mark.parametrize("name", ["SometimesDivides", "SometimesRandom", "Net"])
def test_layers_that_do_for_some_batches_what_others_do_not_show_change_no_bit(name, cli):
    data = ("data=dataset", f"data.dataset._target_={TARGET}.Shuffled", "data.batch_size=4", "data.epochs=9", "seed=0,1,2")
    overrides = (*CUSTOM, "freeze=backbone", "freeze.buffers=frozen", *data, f"model.build._target_={TARGET}.{name}")
    overrides += ("optimizer.lr=0.1,0.01",)
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert_equal_to_runs_alone(cli, *overrides)


def test_a_model_whose_copy_cannot_run_is_trained_and_not_shared(cli):
    sweep(cli, f"model.build._target_={TARGET}.RaisesInACopy", "cost=off")
    assert all("KeyError" in each["reason"] for each in shared())


def test_attributes_that_cannot_be_told_apart_do_not_end_a_run(cli):
    sweep(cli, f"model.build._target_={TARGET}.HasDates")
    assert sorted(each["batches_stored"] for each in shared()) == [0, 4]


def test_batches_in_another_memory_format_share_nothing(cli):
    data = ("data=custom", f"data._target_={TARGET}.Pictures", "++data.channels_last=false,true", "data.epochs=12")
    overrides = (*CUSTOM[:1], *CUSTOM[2:], "model.input=[3,6,6]", f"model.build._target_={TARGET}.Conv", *data)
    overrides += ("freeze=backbone", "freeze.buffers=frozen")
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert [each["batches_stored"] for each in shared()] == [4, 4]
    assert_equal_to_runs_alone(cli, *overrides)


def test_a_tensor_beside_the_parameters_that_changes_in_backward_is_noticed(cli):
    overrides = (*FROZEN, f"model.build._target_={TARGET}.CooledInBackward", "optimizer.lr=0.1,0.01")
    code, out, _ = cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")
    assert code == 0, out
    assert {each["reason"] for each in shared()} == {
        "frozen layers changed in the run, so the run was made anew without stored outputs"
    }
    assert_equal_to_runs_alone(cli, *overrides)


def test_a_step_that_cannot_do_without_the_layers_that_are_skipped_is_made_with_them(cli):
    overrides = (*FROZEN, f"model.build._target_={TARGET}.Branching", "optimizer.lr=0.1,0.01", "data.batch_size=1")
    assert cli("-m", *overrides, f"hydra.sweep.dir={SWEEP}")[0] == 0
    assert all(each["reason"].startswith("a step failed where layers were skipped (RuntimeError: ") for each in shared())
    assert_equal_to_runs_alone(cli, *overrides)


def test_an_error_of_the_run_itself_is_told_as_it_is_alone(cli):
    overrides = (*FROZEN, f"model.build._target_={TARGET}.Net", "optimizer.lr=10,9")
    overrides += ("task=custom", f"task._target_={TARGET}.fails_later")
    for folder, share in ((SWEEP, "prefix"), (Path("alone"), "none")):
        assert cli("-m", *overrides, f"sweep.share={share}", f"hydra.sweep.dir={folder}")[0] == 1
    reasons = [{record["reason"] for record in records(folder).values()} for folder in (SWEEP, Path("alone"))]
    assert reasons[0] == reasons[1]


def test_batches_with_the_same_tensors_in_another_container_share_nothing(cli):
    fields = "{shape: [8]}", "{shape: [], below: 3}"
    overrides = (*FROZEN, f"model.build._target_={TARGET}.Net", "task=custom", f"task._target_={TARGET}.doubles_mappings")
    overrides += ("optimizer.lr=0.1,0.01",)
    for given in (f"[{fields[0]},{fields[1]}]", f"{{0: {fields[0]}, 1: {fields[1]}}}"):
        code, _, err = cli("-m", *overrides, f"data.fields={given}", "sweep.keep=true", f"hydra.sweep.dir={SWEEP}")
        assert code == 0, err
    assert sorted(each["batches_stored"] for each in shared()) == [0, 0, 4, 4]
    assert len({record["loss_last"] for record in records().values()}) == 4


def test_what_is_called_when_garbage_is_collected_is_not_what_the_block_calls():
    def read_the_clock(phase, info) -> None:
        time.time()

    gc.callbacks.append(read_the_clock)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with calls_outside() as calls:
            kept = [[] for _ in range(1000)]
        assert gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(read_the_clock)
    assert (len(kept), calls) == (1000, [])

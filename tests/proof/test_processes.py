"""An audit in two processes (gloo, on this machine): DDP, ZeRO, FSDP2 and DTensors."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from math import isnan

import pytest

from tests.conftest import ROOT

LIMIT = 200  # seconds for all scenarios; a collective that one process misses would wait for longer
MERGED = "the shards of 2 processes are one report, the same in each of them"


pytestmark = pytest.mark.long  # the scenarios start two processes, which take seconds


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return, for each of the two processes, {name of a scenario in `process_scenarios.py`: what it returned}."""
    folder = tmp_path_factory.mktemp("processes")
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": loopback}
    command = [sys.executable, "-m", "tests.proof.process_scenarios"]
    running = []
    try:
        for rank in (0, 1):
            with (folder / f"log{rank}").open("w") as log:
                running.append(subprocess.Popen([*command, str(rank), str(folder)], stdout=log, stderr=log, env=environment))
        codes = [each.wait(LIMIT) for each in running]
    finally:
        for each in running:
            each.kill()
            each.wait()
    assert codes == [0, 0], (folder / "log0").read_text()[-2000:] + (folder / "log1").read_text()[-2000:]
    return [pickle.loads((folder / f"results{rank}").read_bytes()) for rank in (0, 1)]


@pytest.fixture
def same(results):
    """Return a function that takes the name of a scenario, and returns its result, which is the same in both processes."""

    def of(name: str) -> dict:
        one, other = (result[name] for result in results)
        assert repr(one) == repr(other)
        assert "error" not in one, one["traceback"]
        return one

    return of


@pytest.fixture
def errors(results):
    """Return a function that takes the name of a scenario, and returns (class, message) of its error in each process."""
    return lambda name: [result[name]["error"] for result in results]


def verdicts(result: dict, *names: str) -> list[str]:
    """Return `verdict cause` of the rows with these names."""
    return [" ".join(filter(None, (result["rows"][name]["verdict"], result["rows"][name]["cause"]))) for name in names]


LAYERS = ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")


def test_shards_are_judged_as_the_whole_model_in_one_process_is(same, results):
    result, alone = same("fsdp_mixed_flags"), results[0]["one_process"]
    assert list(result["rows"]) == list(alone["rows"]) == list(LAYERS)
    assert verdicts(result, *LAYERS) == ["held", "held", "trained", "trained", "held", "held"]
    for name, row in result["rows"].items():
        expected = {**alone["rows"][name], "module_type": "FSDPLinear"}
        norms = [key for key, value in expected.items() if isinstance(value, float)]
        assert [row[key] for key in norms] == pytest.approx([expected[key] for key in norms], rel=1e-5)
        assert {**row, **{key: expected[key] for key in norms}} == expected
    assert result["looks"] == alone["looks"]
    assert result["notes"] == [MERGED]
    assert result["leaked"] == result["unsound"] == ""


@pytest.mark.parametrize(
    ("scenario", "cause"),
    [
        ("fsdp_all_frozen_by_name_only", "gradient"),
        ("fsdp_columns", "gradient"),
        ("fsdp_zeros_with_weight_decay", "weight_decay"),
        ("fsdp_momentum", "optimizer_state"),
        ("fsdp_scheduler", "scheduler"),
    ],
)
def test_the_cause_of_a_leak_is_found_on_copies_of_shards(same, scenario, cause):
    result = same(scenario)
    assert verdicts(result, "0.weight", "0.bias") == [f"leaked {cause}"] * 2
    assert result["rows"]["0.weight"]["moved_elements"] == 24
    assert "0.weight" in result["leaked"]
    assert "0.weight" in result["unsound"]


def test_a_frozen_tensor_leaks_in_every_report_if_one_process_alone_wrote_its_shard(same):
    result = same("fsdp_write_on_rank_1")
    assert verdicts(result, "0.weight", "0.bias", "1.weight") == ["leaked outside_write", "held", "trained"]
    row = result["rows"]["0.weight"]
    assert (row["shape"], row["numel"], row["moved_elements"], row["seen_at"]) == ("6x4", 24, 12, 2)
    assert row["change_l2"] == pytest.approx(12**0.5)
    assert row["change_rel"] == pytest.approx(row["change_l2"] / row["initial_l2"])


def test_a_frozen_tensor_with_fewer_rows_than_processes_leaks_in_every_report(same):
    result = same("fsdp_write_to_the_only_row")
    assert verdicts(result, "2.weight", "2.bias") == ["leaked outside_write", "held"]
    assert result["rows"]["2.weight"]["moved_elements"] == 5


def test_a_nan_in_one_shard_is_kept_in_the_norms_of_the_whole(same):
    row = same("fsdp_nan_on_rank_1")["rows"]["0.weight"]
    assert isnan(row["change_l2"])
    assert isnan(row["change_max"])
    assert (row["verdict"], row["moved_elements"]) == ("leaked", 1)


def test_a_trainable_tensor_is_idle_only_if_every_shard_is(same):
    result = same("fsdp_idle_on_rank_0")
    assert verdicts(result, "used.weight", "unused.weight", "head.bias") == ["trained", "idle zero_gradient", "held"]
    assert result["rows"]["used.weight"]["moved_elements"] == 2
    rounded = same("fsdp_bfloat16")
    assert (
        verdicts(rounded, "1.weight", "2.weight") == ["idle rounded_away"] * 2
    )  # the second process has none of the latter


def test_what_fsdp_gathers_for_a_forward_pass_is_not_a_replacement(same):
    result = same("fsdp_validation_at_the_end")
    assert result["gathered"]
    assert verdicts(result, *LAYERS) == ["held"] * 2 + ["trained"] * 4
    assert verdicts(same("fsdp_every_step"), *LAYERS) == ["held"] * 2 + ["trained"] * 4
    assert verdicts(same("fsdp_every_step_leaks"), "0.weight", "0.bias") == ["leaked gradient"] * 2
    assert verdicts(same("fsdp_write_after_validation"), "0.weight", "0.bias") == ["leaked outside_write", "held"]
    frozen_later = same("fsdp_freeze_and_unfreeze_after_validation")
    assert verdicts(frozen_later, *LAYERS) == ["held"] * 2 + ["trained"] * 4  # a span without a step


def test_the_phases_of_shards_are_those_of_the_whole_model(same):
    sharded, plain = (same("fsdp_phases")[key] for key in ("sharded", "plain"))
    assert list(sharded) == list(plain) == [(1, 2), (3, 3), (4, 4)]
    for span, rows in plain.items():
        for name, row in rows.items():
            found = sharded[span][name]
            norms = [key for key in row if key.startswith(("initial", "change_"))]
            assert [found[key] for key in norms] == pytest.approx([row[key] for key in norms], rel=1e-4)
            others = row.keys() - {*norms, "module_type"}  # the class of a sharded module has a name of its own
            assert {key: found[key] for key in others} == {key: row[key] for key in others}
    words = [[f"{rows[name]['verdict']} {rows[name]['cause']}".strip() for name in LAYERS[:4]] for rows in sharded.values()]
    assert words == [
        ["held", "held", "trained", "trained"],
        ["trained", "idle no_gradient", "trained", "trained"],
        ["trained", "idle no_gradient", "leaked gradient", "leaked gradient"],
    ]


def test_a_plain_parameter_in_the_place_of_shards_is_a_replacement(same):
    assert verdicts(same("fsdp_parameter_replaced_by_a_plain_one"), "0.weight", "0.bias") == ["leaked replaced", "held"]


def test_a_tied_parameter_of_shards_has_one_row(same):
    result = same("fsdp_tied")
    assert verdicts(result, "inner.weight") == ["leaked gradient"]
    assert result["rows"]["inner.weight"]["aliases"] == "head.weight"


@pytest.mark.parametrize("scenario", ["fsdp_entered_before", "fsdp_entered_before_without_a_step"])
def test_an_audit_that_is_entered_before_sharding_is_refused_with_one_line(errors, scenario):
    message = "model: 0.weight was sharded after audit() began; enter audit() after fully_shard"
    assert errors(scenario) == [("ConfigError", message)] * 2


def test_an_exception_in_the_block_exchanges_nothing_and_its_report_says_so(errors, results):
    assert errors("fsdp_exception_in_the_block") == [("KeyError", "'mine'")] * 2
    for rank, result in enumerate(results):
        alone = result["fsdp_report_after_an_exception"]
        assert verdicts(alone, "0.weight") == [["held", "leaked outside_write"][rank]]
        assert f"rank {rank} of 2: this report is about the tensors of this process alone" in alone["notes"]


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (
            "fsdp_frozen_on_rank_0_alone",
            "frozen: 0.weight and 0.bias: declared frozen on rank 0, but not on rank 1; declare the same on each rank",
        ),
        (
            "fsdp_frozen_in_mid_run_on_rank_0_alone",
            "frozen: 0.bias: declared frozen on rank 0, but not on rank 1; declare the same on each rank",
        ),
        (
            "fsdp_unfrozen_on_rank_0_alone",
            "frozen: 0.weight and 0.bias: declared frozen on rank 1, but not on rank 0; declare the same on each rank",
        ),
    ],
)
def test_processes_that_do_not_declare_the_same_frozen_get_the_same_error_and_no_report(errors, scenario, message):
    assert errors(scenario) == [("ConfigError", message)] * 2
    assert {kind for kind, _ in errors("fsdp_report_after_other_declarations")} == {"RuntimeError"}


def test_raise_at_look_raises_in_every_process_on_leaving(errors):
    assert errors("fsdp_raise_at_look") == [("LeakError", "1 frozen tensor changed: 0.weight (outside_write)")] * 2


def test_digests_of_shards_find_a_leak_after_the_last_step_that_is_watched(same):
    result = same("fsdp_until")
    assert verdicts(result, "0.weight", "0.bias", "2.weight") == ["leaked unknown", "held", "held"]
    assert result["notes"] == [MERGED, "the cause is unknown for 0.weight: changed after step 1, the last watched"]
    assert verdicts(same("fsdp_until_holds"), *LAYERS) == ["held"] * 2 + ["trained"] * 4


def test_a_frozen_buffer_that_one_process_alone_wrote_leaks_in_every_report(same):
    result = same("fsdp_frozen_buffers")
    assert verdicts(result, "1.running_mean", "1.running_var") == ["leaked unknown", "held"]
    assert result["rows"]["1.running_mean"]["moved_elements"] == 4  # each process has all of it


@pytest.mark.parametrize("scenario", ["hsdp", "hsdp_one_replica"])
def test_elements_that_several_processes_hold_are_counted_once(same, scenario):
    row = same(scenario)["rows"]["0.weight"]
    assert (row["verdict"], row["moved_elements"]) == ("leaked", 24)
    assert row["change_l2"] == pytest.approx(24**0.5)


def test_tensor_parallel_layers_below_fsdp_are_judged_as_one(same):
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
    result = same("tensor_parallel_and_fsdp")
    for shape in ((2, 1), (1, 2)):
        assert verdicts(result[shape], *names) == ["held"] * 2 + ["trained"] * 4
        assert verdicts(result[shape, "leaked"], "0.weight", "0.bias", "1.bias") == [
            "leaked outside_write",
            "held",
            "leaked gradient",
        ]
        assert result[shape, "leaked"]["rows"]["0.weight"]["moved_elements"] == 12


def test_placements_of_a_dtensor_say_how_its_parts_add_up(same):
    rows = same("dtensors")["rows"]
    assert [rows[name]["moved_elements"] for name in ("rows", "columns", "copies", "sums")] == [4, 4, 8, None]
    assert [rows[name]["initial_l2"] for name in ("rows", "columns", "copies", "sums")] == [
        *[pytest.approx(204**0.5)] * 3,
        None,
    ]
    assert [rows[name]["verdict"] for name in ("rows", "columns", "copies", "sums", "kept")] == [*["leaked"] * 4, "held"]


@pytest.mark.parametrize("scenario", ["fsdp_optimizer_with_a_collective", "fsdp_optimizer_with_a_norm_of_a_dtensor"])
def test_a_step_that_needs_the_other_processes_is_not_replayed_and_the_reason_is_given(same, scenario):
    result = same(scenario)
    assert verdicts(result, "0.weight") == ["leaked unknown"]
    (note,) = [note for note in result["notes"] if note.startswith("the cause is unknown for 0.weight and 0.bias")]
    assert "could not be replayed (RuntimeError: it needs the other processes: all" in note


def test_a_step_that_one_process_alone_replays_does_not_wait_for_the_other(same):
    assert verdicts(same("fsdp_replay_on_rank_1_alone"), "0.weight", "0.bias") == ["leaked unknown", "held"]


def test_an_audit_that_fails_in_one_process_raises_in_all(errors):
    assert errors("audit_that_fails_on_rank_1") == [
        ("RuntimeError", "the audit could not be completed on rank 1: ValueError: no room"),
        ("ValueError", "no room"),
    ]


def test_what_hides_its_shards_is_refused_with_one_line(errors, results):
    message = "model: FullyShardedDataParallel hides which parameter a shard belongs to; use fully_shard"
    assert errors("fsdp1") == [("ConfigError", message)] * 2
    others = [
        f"model: rank {rank} holds 0 of the 24 elements of 0.weight, and no DTensor says which; use fully_shard"
        for rank in (0, 1)
    ]
    assert errors("parameter_held_by_others") == [("ConfigError", text) for text in others]
    message = "model: rank 1 holds no part of one; enter audit() on the ranks of its device mesh only"
    assert results[1]["dtensor_on_another_rank"]["error"] == ("ConfigError", message)


def test_a_run_of_several_processes_is_refused_with_one_line(errors):
    message = "model: torch.distributed runs several processes; use one process and dense tensors"
    assert errors("run_of_several_processes") == [("ConfigError", message)] * 2


def test_each_process_reports_on_its_own_copy_under_ddp_and_says_its_rank(results):
    for rank, result in enumerate(results):
        told = result["ddp_write_on_rank_1"]
        assert verdicts(told, "module.0.weight", "module.1.weight") == [["held", "leaked outside_write"][rank], "trained"]
        assert told["notes"] == [f"rank {rank} of 2: this report is about the tensors of this process alone"]
        assert verdicts(result["ddp_leak"], "module.0.weight", "module.0.bias") == ["leaked gradient"] * 2


def test_a_parameter_without_elements_is_judged_under_ddp_as_in_one_process(results):
    for result in results:
        told = result["ddp_parameter_without_elements"]
        assert verdicts(told, "module.0.weight", "module.1.nothing", "module.1.weight") == ["held", "held", "trained"]


def test_raise_at_look_raises_in_the_step_under_ddp(errors):
    assert [(name, "after step 1" in text) for name, text in errors("ddp_raise_at_look")] == [("LeakError", True)] * 2


def test_zero_holds_and_leaks_and_what_cannot_be_copied_is_the_reason_of_an_unknown_cause(results):
    for rank, result in enumerate(results):
        assert verdicts(result["zero_holds"], "module.0.weight", "module.1.weight") == ["held", "trained"]
        for name in ("zero_leaks", "zero_leaks_every_step"):
            assert verdicts(result[name], "module.0.weight", "module.0.bias") == ["leaked unknown"] * 2
            assert any("ZeroRedundancyOptimizer could not be replayed" in note for note in result[name]["notes"])
            assert any(note.startswith(f"rank {rank} of 2") for note in result[name]["notes"])


def test_what_another_process_has_stepped_and_sent_is_no_outside_write(results):
    for result in results:
        told = result["zero_gradient_on_one_rank"]
        leaked = [name for name, row in told["rows"].items() if row["frozen"] and row["verdict"] == "leaked"]
        assert leaked
        assert {told["rows"][name]["cause"] for name in leaked} == {"unknown"}

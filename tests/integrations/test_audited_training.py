"""An audit that is open over the events of a loop: what it refuses, warns of, writes and prints, without any library."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.optimizer import _global_optimizer_pre_hooks

from runner.errors import ConfigError
from runner.integrations.audit_table import verdict_rows
from runner.integrations.audited_training import AuditedTraining
from runner.proof.audit_report import UnsoundError
from tests.conftest import read_table

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("error:FreezeAudit")


def training(frozen=None, **options) -> AuditedTraining:
    return AuditedTraining(frozen, **{"until": 2, "strict": False, "folder": None, "buffers": "live", **options})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def loop(model: nn.Module, audited: AuditedTraining, steps: int = 4, optimizer=None, before_step=lambda step: None) -> None:
    """Train as a library does: call the audit at each of its events. `before_step` is given the number of the step."""
    optimizer = optimizer or SGD(model.parameters(), 0.1)
    audited.forget()
    audited.begin(model, [optimizer])
    for step in range(steps):
        optimizer.zero_grad()
        before_step(step + 1)
        model(X).square().mean().backward()
        audited.before_step(step)
        optimizer.step()
        audited.after_step(step + 1)
    audited.end()
    audited.conclude(shows=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": "backbone"}, r"frozen is 'backbone'; give a list of patterns, or None"),
        ({"frozen": []}, r"frozen is \[\]; give a list of patterns, or None"),
        ({"until": 0}, "until is 0; give a number of steps, 1 or more, or None for all"),
        ({"until": True}, "until is True"),
        ({"buffers": "fixed"}, "buffers is 'fixed'; give live or frozen"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_callback_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        training(**options)


def test_a_sound_training_is_silent_until_it_prints_its_table_and_counts(capsys, tmp_path):
    audited = training(folder=tmp_path / "new" / "folder")
    loop(net(), audited)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[:4] == [
        ["declared", "verdict", "tensors", "elements", "names"],
        ["frozen", "held", "2", "20", "0.weight", "and", "0.bias"],
        ["trainable", "trained", "4", "18", "1.weight,", "1.bias", "and", "2", "more"],
        ["live", "buffer", "drifted", "3", "9", "1.running_mean,", "1.running_var", "and", "1.num_batches_tracked"],
    ]
    assert lines[4][:5] == ["FreezeAudit:", "2", "frozen", "tensors", "held,"]
    assert (audited.metrics["freeze_audit/held"], audited.metrics["freeze_audit/problems"]) == (2, 0)
    assert len(read_table(tmp_path / "new" / "folder" / "changes.csv")) == 9
    assert not _global_optimizer_pre_hooks


def test_what_leaked_and_what_is_idle_stand_first_in_the_table():
    audited = training(["0.weight", "1.bias"])
    model = net().requires_grad_(True)
    with pytest.warns(UserWarning, match="after step 2: 2 frozen tensors leaked"):
        loop(model, audited, optimizer=SGD([model[0].weight, model[1].bias], 0.1))
    assert [row[1] for row in verdict_rows(audited.report.rows)] == ["leaked", "idle", "drifted"]


def test_strict_raises_in_the_step_and_still_writes_its_rows(tmp_path):
    audited = training(["2"], strict=True, folder=tmp_path)
    with pytest.raises(
        UnsoundError, match=r"after step 2: 2 frozen tensors leaked: 2\.weight \(gradient\), 2\.bias \(gradient\)"
    ):
        loop(net(), audited)
    assert [row["name"] for row in read_table(tmp_path / "changes.csv") if row["verdict"] == "leaked"] == [
        "2.weight",
        "2.bias",
    ]
    assert not _global_optimizer_pre_hooks


def test_a_long_list_of_leaks_makes_a_short_warning_and_a_short_line(capsys):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(100)))
    with pytest.warns(UserWarning, match="FreezeAudit: after step 2: 200 frozen tensors leaked") as caught:
        loop(model, training(["**"]), optimizer=SGD(model.parameters(), 0.1, weight_decay=0.1))
    assert max(len(str(each.message)) for each in caught) <= 600
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 420


def test_a_model_that_cannot_be_audited_is_trained_unwatched_unless_strict(capsys):
    model = net()
    model[2].weight.ds_numel = 80  # as DeepSpeed's ZeRO-3 has it: this process holds a part
    audited, why = training(), r"model: rank 0 holds 8 of the 80 elements of 2\.weight"
    with pytest.warns(UserWarning, match=f"the training is not watched: {why}"):
        audited.begin(model, [SGD(model.parameters(), 0.1)])
    audited.before_step(0)
    audited.after_step(1)
    audited.end()
    audited.conclude(shows=True)
    assert "FreezeAudit: nothing was watched: model: rank 0 holds 8 of the 80" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=why):
        training(strict=True).begin(model, [])


def test_a_model_for_whose_copy_the_memory_is_missing_is_trained_unwatched(monkeypatch):
    def copy_of(tensor):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("runner.proof.changes.copy_of", copy_of)
    with pytest.warns(UserWarning, match="the training is not watched: OutOfMemoryError: CUDA out of memory"):
        training().begin(net(), [])
    assert not _global_optimizer_pre_hooks


def test_an_audit_that_cannot_begin_for_another_reason_ends_no_training(monkeypatch):
    def copy_of(tensor):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("runner.proof.changes.copy_of", copy_of)
    with pytest.warns(UserWarning, match="the training is not watched: RuntimeError: DefaultCPUAllocator"):
        loop(net(), training())
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        training(strict=True).begin(net(), [])


@pytest.mark.parametrize("until", [2, None])
def test_what_the_flags_declare_in_mid_run_has_a_line_of_its_own(until, capsys):
    model, audited = net(), training(until=until, strict=True)
    model[2].requires_grad_(False)

    def switch(step):
        model[2].requires_grad_(step >= 3)
        model[1].requires_grad_(step < 5)

    loop(model, audited, steps=6, before_step=switch)
    lines = verdict_rows(audited.report.rows, audited.report.flag_changes)
    assert [line[:4] for line in lines if line[0].startswith("frozen")] == [
        ("frozen", "held", "", "2"),
        ("frozen from step 5 on", "held", "", "2"),
        ("frozen before step 3", "held", "", "2"),
    ]
    printed = capsys.readouterr().out
    assert "FreezeAudit: 6 frozen tensors held, 4 of them only while the flags declared them frozen" in printed
    assert "note: from step 5 on, the flags declare frozen: 1.weight and 1.bias" in printed


def test_a_frozen_tensor_that_changed_and_has_its_bits_back_is_not_said_to_have_held(capsys):
    model, audited = net(), training(until=None)

    def write(step):
        model[0].bias.data.add_(1 if step == 2 else -1 if step == 4 else 0)

    model[0].bias.data.zero_()
    loop(model, audited, steps=4, before_step=write)
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 frozen tensor held, 1 changed and had its bits back at the end, and what is trainable" in printed


@pytest.mark.parametrize("until", [2, None])
def test_a_learning_rate_of_zero_in_the_first_steps_is_no_failure(until):
    model, audited = net(), training(until=until, strict=True)
    optimizer = SGD(model.parameters(), 0.0)

    def warm_up(step):
        optimizer.param_groups[0]["lr"] = 0.1 if step > 4 else 0.0

    loop(model, audited, steps=6, optimizer=optimizer, before_step=warm_up)
    assert {row["verdict"] for row in audited.report.rows if row["kind"] == "parameter"} == {"held", "trained"}
    assert audited.problems == []


def test_a_learning_rate_that_stays_zero_is_a_failure_at_the_end():
    model = net()
    with pytest.raises(UnsoundError, match=r"^4 trainable parameters did not change: .*lr_zero.*no parameter was trained"):
        loop(model, training(strict=True), optimizer=SGD(model.parameters(), 0.0), steps=5)


def test_a_parameter_that_no_step_can_train_is_a_failure_at_the_last_watched_step():
    model, audited = net(), training(strict=True)
    with pytest.raises(UnsoundError, match=r"^after step 2: 2 trainable parameters did not change: .*not_in_optimizer"):
        loop(model, audited, optimizer=SGD(model[1].parameters(), 0.1))


@pytest.mark.parametrize("until", [4, None])
def test_a_frozen_layer_that_is_added_in_mid_run_is_no_failure(until):
    model, audited = net(), training(until=until, strict=True)

    def add(step):
        if step == 2:
            model.append(nn.Linear(2, 2).requires_grad_(False))

    loop(model, audited, steps=6, before_step=add)
    assert audited.problems == []
    assert next(row for row in audited.report.rows if row["name"] == "3.weight")["frozen"] is False


def test_what_only_looks_like_an_optimizer_is_not_handed_to_the_audit():
    audited = training()
    audited.begin(net(), [None, object()])
    audited.end()
    assert audited.report.ended


def test_a_problem_is_told_once_while_training():
    audited = training(["0"], until=3)
    model = net()
    model[2].bias.requires_grad_(False)
    told = r"1 trainable parameter did not change: 2\.bias .*, of which some have requires_grad=False: declare them"
    with pytest.warns(UserWarning, match=told) as caught:
        loop(model, audited, steps=9)
    assert len(caught) == 1


def test_a_training_that_is_begun_again_forgets_the_one_before():
    model, audited = net(), training(strict=True)
    loop(model, audited)
    report = audited.report
    audited.forget()
    audited.begin(model, [])
    audited.forget()  # an exception ended it
    assert not _global_optimizer_pre_hooks
    loop(model, audited)
    assert audited.report is not report
    assert audited.report.steps == 2


def test_it_can_be_sent_to_another_process_before_and_after_a_training():
    audited = training()
    for _ in range(2):
        audited = pickle.loads(pickle.dumps(audited))
        loop(net(), audited)
    assert pickle.loads(pickle.dumps(audited)).report.rows == audited.report.rows


def test_a_folder_that_cannot_be_written_to_is_a_warning_and_the_verdicts_are_still_printed(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"FreezeAudit: .*changes\.csv could not be written"):
        loop(net(), training(folder=tmp_path / "file"))
    printed = capsys.readouterr().out
    assert "2 frozen tensors held" in printed
    assert "rows:" not in printed


@pytest.mark.parametrize("until", [2, None])
def test_tensors_that_cannot_be_compared_after_an_exception_are_not_said_to_have_held(until, capsys, tmp_path):
    model, audited = net(), training(until=until, folder=tmp_path)

    def break_off(step):
        if step == 4:
            model[2]._parameters = None  # so that no tensor of the model can be listed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop(model, audited, before_step=break_off)
    audited.end(KeyboardInterrupt())
    audited.conclude(shows=True, may_raise=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("FreezeAudit: an exception ended the training, and its tensors could not be compared")
    assert "held," not in printed
    assert audited.metrics["freeze_audit/problems"] == 1
    assert not list(tmp_path.iterdir())

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


def loop(model: nn.Module, audited: AuditedTraining, steps: int = 4, optimizer=None) -> None:
    """Train as a library does: call the audit at each of its events."""
    optimizer = optimizer or SGD(model.parameters(), 0.1)
    audited.forget()
    audited.begin(model, [optimizer])
    for step in range(steps):
        optimizer.zero_grad()
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
    with pytest.warns(UserWarning, match="the training is not watched: CUDA out of memory"):
        training().begin(net(), [])
    assert not _global_optimizer_pre_hooks


def test_what_only_looks_like_an_optimizer_is_not_handed_to_the_audit():
    audited = training()
    audited.begin(net(), [None, object()])
    audited.end()
    assert audited.report.ended


def test_a_problem_is_told_once_while_training():
    audited = training(["0"], until=3)
    model = net()
    model[2].bias.requires_grad_(False)
    with pytest.warns(UserWarning, match="1 trainable parameter did not change: 2.bias") as caught:
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
    assert "2 frozen tensors held" in capsys.readouterr().out

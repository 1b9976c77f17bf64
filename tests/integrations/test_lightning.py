"""The callback for Lightning, in real fits: flags that change, several optimizers, precision, averaging, resuming."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import DataLoader, TensorDataset

from runner.integrations.lightning import FreezeAudit
from runner.proof.audit_report import UnsoundError
from tests.conftest import read_table

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore", "error:FreezeAudit")]  # Lightning warns of much


class Net(LightningModule):
    """A backbone with BatchNorm, and a head. `leak`: what `training_step` adds to the first bias."""

    def __init__(self, leak: float = 0, frozen: bool = True, lr: float = 1e-2, all_in_optimizer: bool = False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.backbone.requires_grad_(not frozen)
        self.leak, self.lr, self.all_in_optimizer, self.options = leak, lr, all_in_optimizer, options

    def training_step(self, batch, number):
        self.backbone[0].bias.data.add_(self.leak)
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch, number):
        self.log("val", self.training_step(batch, number))

    def configure_optimizers(self):
        parameters = [each for each in self.parameters() if each.requires_grad or self.all_in_optimizer]
        return torch.optim.AdamW(parameters, self.lr, **self.options)


def loader(batches: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8 * batches, 4, generator=generator), torch.randint(2, (8 * batches,), generator=generator)
    return DataLoader(TensorDataset(x, y), 8)


def trainer_with(*callbacks: Callback, **options) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return Trainer(**{"accelerator": "cpu", "max_epochs": 3, **quiet, **options}, callbacks=list(callbacks))


def fit(model: LightningModule, audit: FreezeAudit, *callbacks: Callback, **options) -> dict[str, str]:
    """Fit a model for 12 steps, and return {name: "verdict cause"} of its parameters."""
    trainer_with(*callbacks, audit, **options).fit(model, loader(), **({"val_dataloaders": loader(1)}))
    return verdicts(audit)


def verdicts(audit: FreezeAudit) -> dict[str, str]:
    rows = [row for row in audit.report.rows if row["kind"] == "parameter"]
    return {row["name"]: f"{row['verdict']} {row['cause']}".strip() for row in rows}


def parts(found: dict[str, str]) -> dict[str, set[str]]:
    """Return {first part of a name: the verdicts in it}."""
    return {part: {verdict for name, verdict in found.items() if name.startswith(part)} for part in ("backbone", "head")}


def no_hooks_are_left() -> bool:
    return not _global_optimizer_pre_hooks and not _global_optimizer_post_hooks


HELD = {"backbone": {"held"}, "head": {"trained"}}


def test_a_frozen_backbone_held_and_a_table_says_so(capsys):
    audit = FreezeAudit(strict=True)
    assert parts(fit(Net(), audit)) == HELD
    assert audit.report.looks == [1, 2, 4, 8]
    out = capsys.readouterr().out
    assert "frozen       held" in out
    assert "FreezeAudit: 6 frozen tensors held, and what is trainable was trained" in out
    assert no_hooks_are_left()


def test_the_training_gets_the_same_bits_with_and_without_the_callback():
    models = [Net(all_in_optimizer=True), Net(all_in_optimizer=True)]
    trainer_with().fit(models[0], loader())
    trainer_with(FreezeAudit()).fit(models[1], loader())
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


def test_verdicts_go_to_the_logger_and_the_rows_to_the_folder(tmp_path):
    audit = FreezeAudit(["backbone"], folder=tmp_path / "proof", buffers="frozen", until=2)
    with pytest.warns(UserWarning, match=r"after step 2: 3 frozen tensors leaked: backbone\.1\.running_mean"):
        fit(Net(), audit, logger=CSVLogger(tmp_path, name="log"))
    with next(tmp_path.glob("log/*/metrics.csv")).open(newline="") as file:
        (logged,) = [row for row in csv.DictReader(file) if row["freeze_audit/held"]]
    assert (logged["freeze_audit/leaked"], logged["freeze_audit/held"], logged["step"]) == ("3.0", "6.0", "12")
    rows = read_table(tmp_path / "proof" / "changes.csv")
    assert [row["name"] for row in rows if row["verdict"] == "leaked"] == audit.report.leaks


def test_the_trainer_of_the_package_pytorch_lightning_calls_the_same_callback():
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        training_step, configure_optimizers = Net.training_step, Net.configure_optimizers

    other, net, audit = Other(), Net(), FreezeAudit(strict=True)
    other.backbone, other.head = net.backbone, net.head
    vars(other).update({name: vars(net)[name] for name in ("leak", "lr", "all_in_optimizer", "options")})
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    pytorch_lightning.Trainer(accelerator="cpu", max_epochs=3, callbacks=[audit], **quiet).fit(other, loader())
    assert parts(verdicts(audit)) == HELD


def test_after_the_last_watched_step_no_hook_is_left():
    class Looks(Callback):
        def on_train_batch_end(self, trainer, *_):
            assert no_hooks_are_left() == (trainer.global_step >= 2)

    fit(Net(), FreezeAudit(until=2, strict=True), Looks())


def test_two_audits_of_one_fit_do_not_disturb_each_other():
    model, flags, patterns = (
        Net(all_in_optimizer=True),
        FreezeAudit(strict=True),
        FreezeAudit(["backbone", "head.bias"], until=3),
    )
    with pytest.warns(UserWarning, match=r"after step 3: 1 frozen tensor leaked: head\.bias \(gradient\)"):
        trainer_with(flags, patterns).fit(model, loader())
    assert parts(verdicts(flags)) == HELD
    assert patterns.report.leaks == ["head.bias"]
    assert no_hooks_are_left()


def test_a_search_for_a_learning_rate_is_not_taken_for_the_fit():
    model, audit = Net(), FreezeAudit(strict=True)
    trainer = trainer_with(audit)
    Tuner(trainer).lr_find(model, loader(), num_training=5)
    trainer.fit(model, loader())
    assert parts(verdicts(audit)) == HELD
    assert audit.report.looks == [1, 2, 4, 8]
    assert no_hooks_are_left()


# What leaks


def test_a_leak_is_a_warning_at_the_last_watched_step_and_a_table_at_the_end(capsys):
    with pytest.warns(
        UserWarning, match=r"FreezeAudit: after step 8: 1 frozen tensor leaked: backbone\.0\.bias \(outside_write"
    ):
        found = fit(Net(leak=1), FreezeAudit(["backbone"]))
    assert found["backbone.0.bias"] == "leaked outside_write"
    assert "1 frozen tensor leaked: backbone.0.bias" in capsys.readouterr().out


def test_strict_raises_at_the_last_watched_step_with_names_and_causes():
    model, audit = Net(all_in_optimizer=True, frozen=False), FreezeAudit(["backbone.3"], strict=True, until=2)
    trainer = trainer_with(audit)
    with pytest.raises(UnsoundError, match=r"after step 2: 2 frozen tensors leaked: backbone\.3\.weight \(gradient\)"):
        trainer.fit(model, loader())
    assert trainer.global_step == 2
    assert audit.report.leaks == ["backbone.3.weight", "backbone.3.bias"]
    assert no_hooks_are_left()


def test_strict_raises_at_the_end_what_leaked_after_the_last_watched_step():
    class Late(Callback):
        def on_train_end(self, trainer, module):
            module.backbone[0].bias.data.add_(1)

    audit = FreezeAudit(strict=True, until=2)
    with pytest.raises(UnsoundError, match=r"1 frozen tensor leaked: backbone\.0\.bias \(unknown\)"):
        trainer_with(audit, Late()).fit(Net(), loader())
    assert any("changed after step 2, the last watched" in note for note in audit.report.notes)


def test_flags_that_were_forgotten_are_found_by_patterns():
    with pytest.warns(UserWarning, match="FreezeAudit: after step 8: 6 frozen tensors leaked"):
        found = fit(Net(all_in_optimizer=True, frozen=False), FreezeAudit(["backbone"]))
    assert found["backbone.0.weight"] == "leaked gradient"


def test_a_learning_rate_that_stays_zero_is_said_at_the_end(capsys):
    found = fit(Net(all_in_optimizer=True, lr=0), FreezeAudit())
    assert found["head.weight"] == "idle lr_zero"
    assert "FreezeAudit: no parameter was trained" in capsys.readouterr().out


# Flags that change in mid-fit


@pytest.mark.parametrize("until", [2, 8, None])
@pytest.mark.parametrize("train_bn", [True, False])
def test_what_backbone_finetuning_unfreezes_is_trainable_from_then_on(train_bn, until):
    model, audit = Net(frozen=False), FreezeAudit(until=until, strict=True)
    before = model.backbone[0].weight.clone()
    found = fit(model, audit, BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=train_bn))
    assert found == {
        **dict.fromkeys(("backbone.0.weight", "backbone.0.bias", "backbone.3.weight", "backbone.3.bias"), "held"),
        **dict.fromkeys(("backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias"), "trained"),
    }
    assert not torch.equal(before, model.backbone[0].weight)
    assert audit.report.notes[0].startswith("from step 5 on, the flags declare trainable: backbone.0.weight")


@pytest.mark.parametrize("until", [2, None])
def test_statistics_of_a_batch_norm_that_is_unfrozen_held_until_then(until):
    class Unfreezes(Net):
        def on_train_epoch_start(self):
            self.backbone[1].requires_grad_(self.current_epoch > 0).train(self.current_epoch > 0)

    model, audit = Unfreezes(all_in_optimizer=True), FreezeAudit(until=until, strict=True, buffers="frozen")
    fit(model, audit, limit_val_batches=0)
    assert {row["verdict"] for row in audit.report.rows if row["kind"] == "buffer"} == {"held"}
    assert model.backbone[1].num_batches_tracked == 8  # in the two epochs after the first


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norm_that_no_optimizer_has_until_the_backbone_is_unfrozen_is_said_to_be_idle_until_then(train_bn):
    class HeadOnly(Net):
        def configure_optimizers(self):
            return torch.optim.Adam(self.head.parameters(), 1e-2)

    model = HeadOnly(frozen=False)
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=2, train_bn=train_bn)
    with pytest.warns(UserWarning, match=r"2 trainable parameters did not change: backbone\.1\.weight \(not_in_optimizer\)"):
        found = fit(model, FreezeAudit(until=4), finetuning)
    assert found["backbone.1.bias"] == ("trained" if train_bn else "idle not_in_optimizer")
    assert bool(model.backbone[1].bias.any()) == train_bn


def test_a_backbone_that_is_unfrozen_before_the_first_step_was_never_frozen():
    found = fit(Net(frozen=False), FreezeAudit(strict=False), BackboneFinetuning(unfreeze_backbone_at_epoch=0))
    assert parts(found) == {"backbone": {"trained"}, "head": {"trained"}}


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start", "training_step", "on_before_backward"])
def test_flags_may_be_changed_anywhere_before_the_step(hook):
    class Unfreezes(Net):
        pass

    def unfreeze(self, *args):
        if self.trainer.global_step >= 5:
            self.backbone.requires_grad_(True)
        return getattr(super(Unfreezes, self), hook)(*args)

    setattr(Unfreezes, hook, unfreeze)
    audit = FreezeAudit(strict=True, until=None)
    assert parts(fit(Unfreezes(all_in_optimizer=True), audit)) == HELD
    assert audit.report.notes[0].startswith(f"from step {9 if hook == 'on_train_epoch_start' else 6} on")


def test_what_is_unfrozen_and_in_no_optimizer_is_said_not_to_train():
    class Forgets(Net):
        def on_train_epoch_start(self):
            self.backbone.requires_grad_(self.current_epoch > 0)

    with pytest.warns(UserWarning, match=r"unfrozen in mid-run, and unchanged since: backbone\.0\.weight"):
        fit(Forgets(), FreezeAudit())


def test_layers_that_are_frozen_one_after_another_held_from_then_on():
    class FreezesMore(Net):
        def on_train_epoch_start(self):
            self.backbone[0].requires_grad_(self.current_epoch < 1)
            self.backbone[3].requires_grad_(self.current_epoch < 2)

    audit = FreezeAudit(until=None)
    with pytest.warns(UserWarning, match="nothing is frozen"):
        assert fit(FreezesMore(frozen=False), audit)["backbone.3.bias"] == "held"
    audit.report.raise_if_unsound()
    assert [note[:17] for note in audit.report.notes[:2]] == ["from step 5 on, t", "from step 9 on, t"]


def test_momentum_that_moves_a_layer_after_its_flag_was_switched_off_is_a_leak():
    class KeepsGradients(Net):
        def on_train_epoch_start(self):
            self.backbone[1:].requires_grad_(self.current_epoch < 1)

        def optimizer_zero_grad(self, epoch, number, optimizer):
            optimizer.zero_grad(set_to_none=False)

    model = KeepsGradients(frozen=False)
    model.backbone[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="FreezeAudit: after step 8: 4 frozen tensors leaked"):
        found = fit(model, FreezeAudit(), limit_val_batches=0)  # a validation sets gradients to None
    assert found["backbone.3.weight"] == "leaked weight_decay|optimizer_state"


# Optimizers


class Gan(LightningModule):
    """Two optimizers in manual optimization, with `toggle_optimizer`, and an embedding that neither may train."""

    def __init__(self, accumulate: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.embedding = nn.Linear(4, 4).requires_grad_(False)
        self.maker, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)
        self.accumulate = accumulate

    def training_step(self, batch, number):
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            self.toggle_optimizer(optimizer)
            self.manual_backward(sign * self.critic(self.maker(self.embedding(batch[0]))).mean())
            if (number + 1) % self.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.Adam(self.maker.parameters()), torch.optim.SGD(self.critic.parameters(), 0.1)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_manual_optimization_with_two_optimizers(accumulate):
    audit = FreezeAudit(strict=True, until=4)
    trainer_with(audit).fit(Gan(accumulate), loader())
    assert verdicts(audit) == {
        **dict.fromkeys(("embedding.weight", "embedding.bias"), "held"),
        **dict.fromkeys(("maker.weight", "maker.bias", "critic.weight", "critic.bias"), "trained"),
    }
    assert audit.report.steps == 4
    assert not any("flags" in note for note in audit.report.notes)


@pytest.mark.parametrize("until", [1, None])
def test_steps_are_those_of_one_optimizer_where_there_are_two(until):
    class Freezes(Gan):
        def on_train_batch_start(self, batch, number):
            self.maker.bias.requires_grad_(number < 2)

    audit = FreezeAudit(until=until)
    trainer_with(audit, max_epochs=1).fit(Freezes(), loader())
    assert "from step 3 on, the flags declare frozen: maker.bias" in audit.report.notes


@pytest.mark.parametrize(
    "options",
    [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"gradient_clip_val": 0.1}],
    ids=str,
)
def test_accumulation_precision_and_clipping(options):
    assert parts(fit(Net(lr=0.1), FreezeAudit(strict=True, until=4), **options)) == HELD


def test_lbfgs_calls_its_closure_several_times():
    class Lbfgs(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.head.parameters(), max_iter=3)

    assert parts(fit(Lbfgs(), FreezeAudit(strict=True))) == HELD


@pytest.mark.parametrize("audit_is_first", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_stochastic_weight_averaging_does_not_change_what_is_frozen(audit_is_first, norm):
    model, audit, average = Net(), FreezeAudit(strict=True), StochasticWeightAveraging(0.05, swa_epoch_start=1)
    if not norm:
        model.backbone[1] = nn.Identity()
    callbacks = (audit, average) if audit_is_first else (average, audit)
    trainer_with(*callbacks).fit(model, loader(), loader(1))
    assert parts(verdicts(audit)) == HELD


def test_an_exponential_average_rounds_frozen_weights_and_copies_them_into_the_model_at_the_end():
    with pytest.raises(UnsoundError, match="4 frozen tensors leaked"):
        fit(Net(), FreezeAudit(strict=True), EMAWeightAveraging())


def test_averaging_that_moves_frozen_weights_at_the_end_is_a_leak():
    class Wrong(StochasticWeightAveraging):
        def on_train_end(self, trainer, module):
            self._average_model.backbone[0].bias.data.add_(1)
            super().on_train_end(trainer, module)

    model = Net()
    model.backbone[1] = nn.Identity()
    with pytest.raises(UnsoundError, match=r"backbone\.0\.bias"):
        fit(model, FreezeAudit(strict=True, until=2), Wrong(0.05, swa_epoch_start=1))


def test_a_model_that_moves_to_another_device_at_the_end_keeps_the_cause_of_its_leak():
    class Moves(Net):
        def on_train_batch_start(self, batch, number):
            self.backbone[3].requires_grad_(self.global_step >= 9)  # after the last step with a look

        def on_train_end(self):
            for each in self.parameters():
                each.data = each.data.clone()  # as `cpu()` does with a model on a GPU

    audit = FreezeAudit(["backbone.3"], until=None)
    found = fit(Moves(frozen=False, all_in_optimizer=True), audit, limit_val_batches=0)  # a validation removes gradients
    assert found["backbone.3.weight"] == "leaked gradient"
    assert audit.report.looks == [1, 2, 4, 8, 12]


# Several fits, resuming, evaluation, failures


def test_each_fit_is_audited_anew():
    model, audit = Net(), FreezeAudit(strict=True)
    first = fit(model, audit)
    report = audit.report
    assert fit(model, audit) == first
    assert audit.report is not report
    trainer = trainer_with(audit)
    trainer.fit(model, loader())
    trainer.fit_loop.max_epochs = 5
    trainer.fit(model, loader())
    assert trainer.global_step == 20
    assert audit.report.looks == [1, 2, 4, 8]


def test_a_fit_that_is_resumed_is_audited_from_its_first_step_on(tmp_path):
    fit(Net(), FreezeAudit(strict=True), ModelCheckpoint(tmp_path, filename="saved"), enable_checkpointing=True)
    model, audit = Net(), FreezeAudit(strict=True, until=2)
    model.backbone[0].bias.data.add_(1)  # restored before the audit begins
    trainer_with(audit, max_epochs=5).fit(model, loader(), ckpt_path=tmp_path / "saved.ckpt")
    assert parts(verdicts(audit)) == HELD
    assert audit.report.steps == 2


def test_backbone_finetuning_that_is_resumed_after_it_unfroze_freezes_the_backbone_again(tmp_path):
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    saving = ModelCheckpoint(tmp_path, filename="saved")
    fit(Net(frozen=False), FreezeAudit(strict=True), finetuning, saving, enable_checkpointing=True)
    audit = FreezeAudit()
    again = trainer_with(BackboneFinetuning(unfreeze_backbone_at_epoch=1), audit, max_epochs=5)
    again.fit(Net(frozen=False), loader(), ckpt_path=tmp_path / "saved.ckpt")
    assert verdicts(audit)["backbone.0.weight"] == "held"  # Lightning unfreezes in that one epoch only


def test_validation_in_between_is_no_training():
    audit = FreezeAudit(strict=True)
    trainer = trainer_with(audit, val_check_interval=1, num_sanity_val_steps=2)
    trainer.fit(Net(), loader(), loader(2))
    trainer.validate(Net(), loader(1), verbose=False)
    assert audit.report.steps == 8
    assert parts(verdicts(audit)) == HELD


def test_a_fit_that_fails_leaves_no_hooks_and_its_own_error():
    class Fails(Net):
        def training_step(self, batch, number):
            if self.trainer.global_step == 3:
                raise OSError("the disk is full")
            return super().training_step(batch, number)

    audit = FreezeAudit(strict=True)
    with pytest.raises(OSError, match="the disk is full"):
        fit(Fails(), audit)
    assert no_hooks_are_left()
    assert parts(verdicts(audit)) == HELD
    assert audit.report.steps == 3


def test_an_interrupted_fit_says_what_was_found_so_far(capsys):
    class Interrupted(Net):
        def training_step(self, batch, number):
            if self.trainer.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(batch, number)

    with pytest.raises(SystemExit):
        fit(Interrupted(), FreezeAudit(["backbone", "head"], strict=True))
    printed = capsys.readouterr().out
    assert "leaked" in printed
    assert "FreezeAudit: 2 frozen tensors leaked" in " ".join(printed.split())
    assert no_hooks_are_left()


# Nothing to watch


def test_a_pattern_that_matches_nothing_is_refused_before_the_first_step():
    model = Net()
    trainer = trainer_with(FreezeAudit(["backbon"]))
    with pytest.raises(ValueError, match=r"frozen: 'backbon' matches no parameter.*did you mean backbone"):
        trainer.fit(model, loader())
    assert trainer.global_step == 0
    assert no_hooks_are_left()


def test_nothing_frozen_is_a_warning_at_once_and_a_failure_if_strict():
    with pytest.warns(UserWarning, match="no parameter has requires_grad=False, so nothing is frozen") as caught:
        fit(Net(frozen=False), FreezeAudit())
    assert len([each for each in caught if "FreezeAudit" in str(each.message)]) == 1
    with pytest.raises(UnsoundError, match="after step 8: nothing was frozen"):
        fit(Net(frozen=False), FreezeAudit(strict=True))


def test_a_fit_without_a_step_watched_nothing():
    with pytest.warns(UserWarning, match="nothing was watched: the training made no step"):
        trainer_with(FreezeAudit(), limit_train_batches=0).fit(Net(), loader())
    with pytest.raises(UnsoundError, match="nothing was watched"):
        trainer_with(FreezeAudit(strict=True), limit_train_batches=0).fit(Net(), loader())


class Unseen:
    """An optimizer that is no torch optimizer, as DeepSpeed's is not: it steps copies, and writes them to the model."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.copies = [each.detach().clone() for each in self.parameters]
        self.inner = torch.optim.SGD(self.copies, 0.1)
        self.param_groups, self.state, self.defaults = [{"params": self.parameters, "lr": 0.1}], {}, {}

    def step(self, closure=None):
        loss = closure()
        for each, copied in zip(self.parameters, self.copies, strict=True):
            copied.grad = each.grad
        self.inner.step()
        for each, copied in zip(self.parameters, self.copies, strict=True):
            each.data.copy_(copied)
        return loss

    def zero_grad(self, set_to_none=True):
        for each in self.parameters:
            each.grad = None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_an_optimizer_whose_steps_cannot_be_seen_is_one_message_and_the_bits_are_compared_at_the_end():
    class WithUnseen(Net):
        def configure_optimizers(self):
            return Unseen(self.head.parameters())

    with pytest.warns(UserWarning, match="after step 8: no step of Unseen was seen") as caught:
        found = fit(WithUnseen(), FreezeAudit())
    assert len([each for each in caught if "FreezeAudit" in str(each.message)]) == 1
    assert parts(found) == HELD
    with pytest.raises(UnsoundError, match="no step of Unseen was seen"):
        fit(WithUnseen(), FreezeAudit(strict=True))


def test_a_model_that_was_compiled():
    torch._dynamo.reset()
    audit = FreezeAudit(strict=True)
    trainer_with(audit).fit(torch.compile(Net(), backend="eager"), loader())
    assert parts(verdicts(audit)) == HELD
    torch._dynamo.reset()


def test_after_a_step_was_compiled_no_step_is_seen_and_one_message_says_so():
    torch._dynamo.reset()
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    torch.compile(torch.optim.SGD(layer.parameters(), 0.1).step, backend="eager")()
    with pytest.warns(UserWarning, match="after step 8: no step of AdamW was seen") as caught:
        found = fit(Net(), audit := FreezeAudit())
    assert len([each for each in caught if "FreezeAudit" in str(each.message)]) == 1
    assert parts(found) == HELD
    assert "bits were compared on leaving only: torch.compile has compiled a step" in audit.report.notes
    torch._dynamo.reset()

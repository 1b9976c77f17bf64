"""Lightning with a BaseFinetuning callback, and with finetuning-scheduler, with extras off as their documentation describes.

Sources: https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.BaseFinetuning.html,
https://finetuning-scheduler.readthedocs.io
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable

import lightning
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn

from benchmarks.peers.work import LR, MOMENTUM, Backbone, Batch

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Classifier(lightning.LightningModule):
    """The model as a LightningModule; its optimizer has the parameters with `requires_grad`, as the callback needs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = Backbone(net)
        self.loss_of = nn.CrossEntropyLoss()

    def training_step(self, batch: Batch, number: int) -> Tensor:
        x, y = batch
        return self.loss_of(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=LR, momentum=MOMENTUM)


class FreezeBackbone(BaseFinetuning):
    """Freezes the backbone, with its BatchNorm parameters, and never unfreezes it."""

    def freeze_before_training(self, pl_module: Classifier) -> None:
        self.freeze(pl_module.net.backbone, train_bn=False)

    def finetune_function(self, pl_module: Classifier, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        pass


def train(net: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """Train one epoch on the batches in Lightning's barebones mode, which is meant for measuring its overhead."""
    module = Classifier(net)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, barebones=True, callbacks=[FreezeBackbone()])
    trainer.fit(module, batches)
    return module.net


def train_scheduled(net: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """Train one epoch with finetuning-scheduler, in the first phase of a schedule, which trains the head.

    It needs a checkpoint callback (which saves nothing here), so barebones mode is not possible.
    """
    import finetuning_scheduler as fts

    module = Classifier(net)
    schedule = {0: {"params": ["net.head.*"], "max_transition_epoch": 1}}
    with tempfile.TemporaryDirectory() as folder:  # it writes the schedule to a file
        scheduler = fts.FinetuningScheduler(
            schedule, epoch_transitions_only=True, restore_best=False, logging_level=logging.ERROR, log_dir=folder
        )
        callbacks = [scheduler, fts.FTSCheckpoint(dirpath=folder, save_top_k=0, monitor=None)]
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            **QUIET,
        )
        trainer.fit(module, batches)
    return module.net

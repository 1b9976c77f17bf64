"""What a user of Lightning and Hydra writes for a sweep: `python -m benchmarks.peers.hydra_lightning -m method=A,B ...`.

Hydra's own launcher runs the jobs one after the other in one process. Each job writes its losses to `run.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import hydra
import lightning
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn

from benchmarks.peers.work import LR, MOMENTUM, Backbone, Batch, Batches, model


@dataclass
class Sweep:
    """One job's settings."""

    method: str = "requires_grad"
    freeze: str = "backbone"
    seed: int = 0
    steps: int = 10
    samples: int = 1
    size: int = 128
    threads: int = 1


class Classifier(lightning.LightningModule):
    """ResNet-18 in two parts, one of them frozen; keeps its losses in `losses`."""

    def __init__(self, cfg: Sweep) -> None:
        super().__init__()
        self.cfg, self.net = cfg, Backbone(model(cfg.seed))
        self.frozen = self.net.head if cfg.freeze == "fc" else self.net.backbone
        self.loss_of = nn.CrossEntropyLoss()
        self.losses: list[Tensor] = []

    def training_step(self, batch: Batch, number: int) -> Tensor:
        loss = self.loss_of(self.net(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        frozen = {id(parameter) for parameter in self.frozen.parameters()}
        trainable = [p for p in self.net.parameters() if id(p) not in frozen]
        groups: list[dict] = [{"params": trainable}]
        if self.cfg.method != "requires_grad":
            lr = 0.0 if self.cfg.method == "zero_lr" else LR
            groups.append({"params": list(self.frozen.parameters()), "lr": lr})
        return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)


class Freeze(BaseFinetuning):
    """Freezes the part that the settings name, and never unfreezes it."""

    def freeze_before_training(self, pl_module: Classifier) -> None:
        if pl_module.cfg.method == "requires_grad":
            self.freeze(pl_module.frozen, train_bn=False)

    def finetune_function(self, pl_module: Classifier, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        pass


ConfigStore.instance().store(name="sweep", node=Sweep)


@hydra.main(version_base="1.3", config_path=None, config_name="sweep")
def main(cfg: Sweep) -> None:
    torch.set_num_threads(cfg.threads)
    module = Classifier(cfg)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, barebones=True, callbacks=[Freeze()])
    trainer.fit(module, Batches(cfg.steps, cfg.samples, cfg.size, cfg.seed))
    losses = torch.stack(module.losses).tolist()
    record = {"method": cfg.method, "freeze": cfg.freeze, "seed": cfg.seed, "loss_first": losses[0], "loss_last": losses[-1]}
    Path(HydraConfig.get().runtime.output_dir, "run.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()

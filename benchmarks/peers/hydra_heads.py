"""What a user of Lightning and Hydra writes to tune the head of a frozen ResNet-18.

`python -m benchmarks.peers.hydra_heads -m lr=A,B weight_decay=C,D ...`. Hydra's own launcher carries out the jobs one after
the other in one process. The backbone is frozen as Lightning's documentation on transfer learning does it: in eval mode and
under `torch.no_grad`. Logger, callbacks and checkpoints are off (barebones mode). Each job writes its losses to `run.json`.
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
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.work import MOMENTUM, Backbone, Batch, Batches, model


@dataclass
class Heads:
    """One job's settings."""

    lr: float = 0.1
    weight_decay: float = 0.0
    batches: int = 16
    passes: int = 5
    samples: int = 8
    size: int = 128
    threads: int = 1


class Classifier(lightning.LightningModule):
    """A frozen backbone in eval mode, and a head that trains; keeps its losses in `losses`."""

    def __init__(self, cfg: Heads) -> None:
        super().__init__()
        self.cfg, self.net = cfg, Backbone(model())
        self.net.backbone.requires_grad_(False)
        self.loss_of = nn.CrossEntropyLoss()
        self.losses: list[Tensor] = []

    def on_train_epoch_start(self) -> None:
        self.net.backbone.eval()

    def training_step(self, batch: Batch, number: int) -> Tensor:
        x, y = batch
        with torch.no_grad():
            features = self.net.backbone(x)
        loss = self.loss_of(self.net.head(features), y)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = {"lr": self.cfg.lr, "momentum": MOMENTUM, "weight_decay": self.cfg.weight_decay}
        return torch.optim.SGD(self.net.head.parameters(), **options)


ConfigStore.instance().store(name="heads", node=Heads)


@hydra.main(version_base="1.3", config_path=None, config_name="heads")
def main(cfg: Heads) -> None:
    torch.set_num_threads(cfg.threads)
    x, y = map(torch.cat, zip(*Batches(cfg.batches, cfg.samples, cfg.size), strict=True))
    module = Classifier(cfg)
    before = [parameter.detach().clone() for parameter in module.net.head.parameters()]
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=cfg.passes, barebones=True)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=cfg.samples))
    moved = [(a - b).norm().item() for a, b in zip(module.net.head.parameters(), before, strict=True)]
    record = {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "loss_last": module.losses[-1].item(), "moved": moved}
    Path(HydraConfig.get().runtime.output_dir, "run.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()

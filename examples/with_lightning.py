"""Train a new head on a frozen backbone, with Lightning."""

from collections import OrderedDict

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from runner.integrations.lightning import FreezeAudit


class FineTune(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU())  # stands for a pretrained one
        self.model = nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(128, 10)))
        self.model.backbone.requires_grad_(False)

    def training_step(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    callbacks=[FreezeAudit(["model.backbone"])],
)
trainer.fit(FineTune(), DataLoader(data, batch_size=64, shuffle=True))

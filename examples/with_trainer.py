"""Train a new head on a frozen backbone, with the Trainer of transformers."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import StackDataset
from transformers import Trainer, TrainingArguments

from runner.integrations.transformers import FreezeAudit


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU())  # stands for a pretrained one
        self.head = nn.Linear(128, 10)

    def forward(self, images, labels):
        logits = self.head(self.backbone(images))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
model = Classifier()
model.backbone.requires_grad_(False)
trainer = Trainer(
    model,
    TrainingArguments("output", num_train_epochs=2, learning_rate=1e-2, use_cpu=True, save_strategy="no", report_to="none"),
    train_dataset=StackDataset(images=images, labels=torch.tensor(digits.target)),
    callbacks=[FreezeAudit(["backbone"])],
)
trainer.train()

"""Train a new head on a frozen backbone, in a plain PyTorch loop."""

from collections import OrderedDict

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from runner import audit

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
loader = DataLoader(data, batch_size=64, shuffle=True)

backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU())  # stands for a pretrained one
model = nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(128, 10)))
model.backbone.requires_grad_(False)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

with audit(model, ["backbone"]) as report:
    for epoch in range(2):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss:.3f}")

print(report)

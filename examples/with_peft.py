"""Train a new head and an adapter in a backbone that stays as it is, with peft."""

from collections import OrderedDict

import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from runner import audit

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
loader = DataLoader(data, batch_size=64, shuffle=True)

backbone = nn.Sequential(OrderedDict(linear=nn.Linear(64, 128), relu=nn.ReLU()))  # stands for a pretrained one
model = nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(128, 10)))
model = get_peft_model(model, LoraConfig(r=4, target_modules=["linear"], modules_to_save=["head"]))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

with audit(model) as report:  # what peft froze by its flags
    for epoch in range(2):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss:.3f}")

print(report)

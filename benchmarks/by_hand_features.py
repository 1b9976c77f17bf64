"""What an expert writes without this project to tune a head on frozen layers: compute their outputs once, train many heads.

The lower limit for a sweep over learning rates and weight decays: one process, one model, one pass through the frozen layers
of ResNet-18 in eval mode. Each head begins with the same weights. For each of them it writes what `by_hand.py` writes, and
compares the bits of all tensors as that does.

Run from the project's root: `python -m benchmarks.by_hand_features --lr A B ... --weight-decay C D ... --out DIR`.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.by_hand import draw_batches, optimizer_of, tensors, train, write_run


@torch.no_grad()
def features_of(model: nn.Module, args: Namespace) -> list[tuple[Tensor, Tensor]]:
    """Return the batches with the outputs of all layers before `fc` in place of the pictures."""
    body = nn.Sequential(*list(model.children())[:-1], nn.Flatten()).eval()
    return [(body(x), y) for x, y in draw_batches(args.batches, args.batch_size, args.size, seed=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lr", type=float, nargs="+", required=True)
    parser.add_argument("--weight-decay", type=float, nargs="+", default=[0.0])
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="height and width of a sample")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, with a folder for each head")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = resnet18(weights=None)
    before = {name: tensor.detach().clone() for name, (_, _, tensor) in tensors(model).items()}
    frozen = {name for name in before if not name.startswith("fc.")}
    batches = features_of(model, args) * args.passes
    for lr, weight_decay in product(args.lr, args.weight_decay):
        for name, parameter in model.fc.named_parameters():
            parameter.data.copy_(before[f"fc.{name}"])
        cell = Namespace(method="requires_grad", lr=lr, weight_decay=weight_decay)
        optimizer = optimizer_of(model, {name for name, _ in model.named_parameters()} & frozen, cell)
        steps = train(model.fc, optimizer, batches)
        lrs = {group["name"]: group["lr"] for group in optimizer.param_groups}
        settings = {"lr": lr, "weight_decay": weight_decay, "seed": 0, "threads": args.threads}
        write_run(args.out / f"{lr}-{weight_decay}", model, before, frozen, lrs, steps, settings)


if __name__ == "__main__":
    main()

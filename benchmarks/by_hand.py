"""What a careful user writes without this project: freeze a part of ResNet-18, train, and measure what moved.

The reference for the other benchmarks: it imports nothing of the project, does the same as
`python -m runner method=... freeze=...` in the most direct way, and writes the same columns and rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18


def tensors(model: nn.Module) -> dict[str, tuple[str, str, Tensor]]:
    """{name: (kind, type of its module, tensor)} for each parameter and buffer, in the order of the modules."""
    found = {}
    for owner, module in model.named_modules():
        kind = type(module).__name__
        prefix = f"{owner}." if owner else ""
        for name, parameter in module.named_parameters(recurse=False):
            found[prefix + name] = ("parameter", kind, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            found[prefix + name] = ("buffer", kind, buffer)
    return found


def row(name: str, kind: str, module_type: str, before: Tensor, after: Tensor, frozen: bool, group: str, lr: Any) -> dict:
    """The row of `changes.csv` for one tensor."""
    moved = not torch.equal(before, after)
    old, new = (before, after) if before.is_floating_point() else (before.double(), after.double())
    difference = new.detach() - old
    initial, distance = torch.linalg.vector_norm(old).item(), torch.linalg.vector_norm(difference).item()
    if kind == "buffer":
        verdict = "drifted" if moved else "still"
    elif frozen:
        verdict = "leaked" if moved else "held"
    else:
        verdict = "trained" if moved else "idle"
    return {
        "name": name,
        "aliases": "",
        "kind": kind,
        "module_type": module_type,
        "shape": "x".join(map(str, before.shape)),
        "numel": before.numel(),
        "dtype": str(before.dtype).removeprefix("torch."),
        "frozen": frozen,
        "group": group,
        "lr": lr,
        "requires_grad": after.requires_grad,
        "initial_l2": initial,
        "change_l2": distance,
        "change_rel": distance / initial if initial else None,
        "change_max": difference.abs().max().item(),
        "moved": moved,
        "verdict": verdict,
        "cause": "",
    }


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows that all have the keys of the first one."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--method", choices=["zero_lr", "requires_grad", "none"], default="zero_lr")
    parser.add_argument("--freeze", choices=["fc", "backbone"], default="fc")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help="height and width of a sample")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = resnet18(weights=None)
    before = {name: tensor.detach().clone() for name, (_, _, tensor) in tensors(model).items()}
    frozen = {name for name, _ in model.named_parameters() if name.startswith("fc.") == (args.freeze == "fc")}
    parts = {"frozen": frozen, "trainable": {name for name, _ in model.named_parameters()} - frozen}
    groups = [{"name": n, "params": [p for k, p in model.named_parameters() if k in part]} for n, part in parts.items()]
    if args.method == "zero_lr":
        groups[0]["lr"] = 0.0
    for parameter in groups[0]["params"] if args.method == "requires_grad" else []:
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(args.seed)
    steps = []
    model.train()
    for number in range(1, args.batches + 1):
        x = torch.randn(args.batch_size, 3, args.size, args.size, generator=generator)
        y = torch.randint(1000, (args.batch_size,), generator=generator)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        lrs = {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
        steps.append({"step": number, "loss": loss.item(), "seconds": time.perf_counter() - start, **lrs})
    lr_of = {group["name"]: group["lr"] for group in optimizer.param_groups}
    rows = []
    for name, (kind, module_type, tensor) in tensors(model).items():
        group = "" if kind == "buffer" else "frozen" if name in frozen else "trainable"
        rows.append(row(name, kind, module_type, before[name], tensor, name in frozen, group, lr_of.get(group)))
    verdict = "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held"
    losses = {"loss_first": steps[0]["loss"], "loss_last": steps[-1]["loss"]}
    record = {"verdict": verdict, **losses, "seed": args.seed, "threads": args.threads, "torch": torch.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "changes.csv", rows)
    write_csv(args.out / "steps.csv", steps)
    (args.out / "run.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

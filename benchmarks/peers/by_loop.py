"""The hand-written loops: each freezing method of the runner, written by hand in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from benchmarks.peers.work import LR, MOMENTUM, Batch

METHODS = ("requires_grad", "detach", "exclude", "grad_none", "restore", "to_buffer", "zero_grad", "zero_lr")


def train(net: nn.Module, batches: Iterable[Batch], method: str = "requires_grad") -> nn.Module:
    """Train the head on the batches and return the model."""
    frozen = [p for name, p in net.named_parameters() if not name.startswith("fc.")]
    optimizer, forward, after_step = prepare(net, frozen, method)
    loss_of = nn.CrossEntropyLoss()
    losses = []
    net.train()
    for x, y in batches:
        optimizer.zero_grad()
        loss = loss_of(forward(x), y)
        loss.backward()
        optimizer.step()
        after_step()
        losses.append(loss.detach())
    return net


def prepare(
    net: nn.Module, frozen: list[nn.Parameter], method: str
) -> tuple[torch.optim.Optimizer, Callable[[torch.Tensor], torch.Tensor], Callable[[], None]]:
    """Freeze `net` by a method; returns the optimizer, the forward pass, and a function to call after each step."""
    parameters = list(net.parameters())
    groups: list[dict] = [{"params": parameters}]
    forward: Callable[[torch.Tensor], torch.Tensor] = net
    after_step: Callable[[], None] = lambda: None  # noqa: E731
    if method == "requires_grad":
        for parameter in frozen:
            parameter.requires_grad_(False)
    elif method == "detach":
        body = nn.Sequential(*list(net.children())[:-1], nn.Flatten())

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                features = body(x)
            return net.fc(features)
    elif method == "exclude":
        groups = [{"params": list(net.fc.parameters())}]
    elif method == "zero_lr":
        groups = [{"params": frozen, "lr": 0.0}, {"params": list(net.fc.parameters())}]
    elif method == "grad_none":
        for parameter in frozen:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    elif method == "zero_grad":
        for parameter in frozen:
            parameter.register_hook(torch.zeros_like)
    elif method == "restore":
        copies = [parameter.detach().clone() for parameter in frozen]

        @torch.no_grad()
        def after_step() -> None:
            for parameter, copy in zip(frozen, copies, strict=True):
                parameter.copy_(copy)
    elif method == "to_buffer":
        for name, module in [(n, m) for n, m in net.named_modules() if n != "fc"]:
            for key in list(module._parameters) if name else ():
                if module._parameters[key] is not None:
                    value = module._parameters.pop(key).detach()
                    module.register_buffer(key, value)
        groups = [{"params": list(net.fc.parameters())}]
    return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM), forward, after_step

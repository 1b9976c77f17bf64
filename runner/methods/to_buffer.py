"""Freezing by turning parameters into buffers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from runner.freezing.selection import Selection
from runner.methods.exclude import Exclude


class ToBuffer(Exclude):
    """Turns frozen parameters into buffers of their modules, under the same names, as torchvision's FrozenBatchNorm2d does.

    Buffers get no gradient and are not given to the optimizer, so no optimizer can step or decay them. They still take the
    same memory. The forward pass can still write to frozen layers, as BatchNorm does to its statistics.
    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.ops.FrozenBatchNorm2d.html
    """

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule) and any(p in selection for p in module.parameters()):
                return f"{name or 'the model'} is a ScriptModule, whose parameters cannot become buffers"
        recurrent = [name for name, module in model.named_modules() if isinstance(module, nn.RNNBase)]
        frozen = [name for name in selection.parameters if any(name.startswith(f"{rnn}.") for rnn in recurrent)]
        if not frozen:
            return None
        return f"{frozen[0]} belongs to a recurrent module, which keeps its parameters in lists of its own"

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        # One buffer per parameter, so that tied parameters stay tied.
        buffers = {id(parameter): parameter.detach() for parameter in selection.parameters.values()}
        for module in model.modules():
            frozen = [name for name, parameter in module._parameters.items() if parameter in selection]
            if frozen:
                undo.callback(_restore_registration, module, dict(module._parameters), dict(module._buffers))
            for name in frozen:
                module.register_buffer(name, buffers[id(module._parameters.pop(name))])
        return model


def _restore_registration(module: nn.Module, parameters: dict[str, Any], buffers: dict[str, Any]) -> None:
    """Give a module its earlier parameters and buffers back, in their earlier order.

    `parameters`, `buffers`: {name in the module: tensor or None}, earlier copies of the dicts `module._parameters` and
    `module._buffers`.
    """
    for registry, original in ((module._parameters, parameters), (module._buffers, buffers)):
        registry.clear()
        registry.update(original)

"""Freezing by turning parameters into buffers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from runner.freezing.selection import Selection
from runner.methods.exclude import Exclude


class ToBuffer(Exclude):
    """Registers frozen parameters as buffers of their modules, as frozen-BatchNorm classes do.

    Buffers get no gradient and are not in the optimizer: no step and no weight decay, under every optimizer. They keep the
    parameters' memory and names. Does not prevent writes in the forward pass.
    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.ops.FrozenBatchNorm2d.html
    """

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
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
    """Restore a module's parameters and buffers, in the order in which they were registered."""
    for registry, original in ((module._parameters, parameters), (module._buffers, buffers)):
        registry.clear()
        registry.update(original)

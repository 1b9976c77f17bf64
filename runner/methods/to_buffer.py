"""Freezing by turning parameters into buffers."""

from __future__ import annotations

from contextlib import ExitStack

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
                undo.callback(_make_parameters_again, module, dict(module._parameters), frozen)
            for name in frozen:
                module.register_buffer(name, buffers[id(module._parameters.pop(name))])
        return model


def _make_parameters_again(module: nn.Module, parameters: dict[str, nn.Parameter | None], names: list[str]) -> None:
    """Register the named buffers of a module as the parameters that they were, in the order of before.

    `parameters`: {name in the module: parameter or None}, an earlier copy of the dict `module._parameters`. What other code
    has registered since then stays.
    """
    for name in names:
        module._buffers.pop(name, None)
    kept = {name: each for name, each in module._parameters.items() if name not in names}
    in_order = {name: kept.pop(name, parameters[name]) for name in parameters if name in kept or name in names}
    module._parameters.clear()
    module._parameters.update({**in_order, **kept})

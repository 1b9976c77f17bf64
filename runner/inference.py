"""Holding modules in inference mode, so that their buffers stay: `freeze.buffers=frozen`."""

from __future__ import annotations

from contextlib import ExitStack
from types import MethodType

from torch import nn

from runner.selection import Selection


def hold_in_inference(selection: Selection, undo: ExitStack) -> None:
    """Put the selected modules in inference mode and keep them there, whatever calls `model.train()`.

    BatchNorm then normalises by its running statistics and leaves them, dropout passes everything through. Parents and
    children that are not selected follow `train()` as usual.
    """
    for module in selection.modules.values():
        if "train" in vars(module):  # one module under two names
            continue
        undo.callback(setattr, module, "training", module.training)
        undo.callback(vars(module).pop, "train")
        # A bound method on the instance: `copy.deepcopy(model)` binds it to the copy, a closure would not.
        vars(module)["train"] = MethodType(_train_others, module)
        module.training = False


def _train_others(module: nn.Module, mode: bool = True) -> nn.Module:
    type(module).train(module, mode)
    module.training = False
    return module

"""Holding modules in eval mode, so that their buffers stay: `freeze.buffers=frozen`."""

from __future__ import annotations

from contextlib import ExitStack
from types import MethodType

from torch import nn

from runner.freezing.selection import Selection


def hold_in_eval_mode(selection: Selection, undo: ExitStack) -> None:
    """Put the selected modules in eval mode and keep them there, whatever calls `model.train()`.

    BatchNorm then normalises by its running statistics and leaves them, dropout passes everything through. Parents and
    children that are not selected follow `train()` as usual.
    """
    for module in selection.modules.values():
        own = vars(module).get("train")  # some pin a BatchNorm by giving it a `train` of its own
        if getattr(own, "__func__", None) is _train_others:  # one module under two names
            continue
        undo.callback(setattr, module, "training", module.training)
        if own is None:
            undo.callback(vars(module).pop, "train")
        else:
            undo.callback(setattr, module, "train", own)
        # A bound method on the instance: `copy.deepcopy(model)` binds it to the copy, a closure would not.
        vars(module)["train"] = MethodType(_train_others, module)
        module.training = False


def _train_others(module: nn.Module, mode: bool = True) -> nn.Module:
    type(module).train(module, mode)
    module.training = False
    return module

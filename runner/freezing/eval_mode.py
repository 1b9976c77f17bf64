"""Keep modules in eval mode while the rest of the model trains, so that their buffers stay the same."""

from __future__ import annotations

from contextlib import ExitStack
from types import MethodType

from torch import nn

from runner.freezing.selection import Selection


def force_eval_mode(selection: Selection, undo: ExitStack) -> None:
    """Put `selection.modules` in eval mode and keep them there when `model.train()` is called.

    Closing the stack `undo` restores the modules. In eval mode BatchNorm uses its running statistics without updating them,
    and dropout is off. Parent and child modules that are not in `selection.modules` follow `train()` as usual.
    """
    for module in selection.modules.values():
        instance_train = vars(module).get("train")  # some users replace `train` on the instance to pin a BatchNorm
        if getattr(instance_train, "__func__", None) is _train_children_only:  # already replaced
            continue
        undo.callback(setattr, module, "training", module.training)
        if instance_train is None:
            undo.callback(vars(module).pop, "train")
        else:
            undo.callback(setattr, module, "train", instance_train)
        # A bound method on the instance, because `copy.deepcopy(model)` binds it to the copied module.
        vars(module)["train"] = MethodType(_train_children_only, module)
        module.training = False


def _train_children_only(module: nn.Module, mode: bool = True) -> nn.Module:
    """Call `train(mode)` on the children of a module, but leave the module itself in eval mode; return the module."""
    type(module).train(module, mode)
    module.training = False
    return module

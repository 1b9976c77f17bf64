"""What makes a step with frozen parts slower than its FLOPs say, as far as the model and its optimizer show it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from runner.display.units import flops_text
from runner.errors import listed
from runner.freezing.selection import Selection
from runner.tensors import is_compiled

MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def why_slower(model: nn.Module, selection: Selection, optimizer: Optimizer | None, flops_again: int = 0) -> Sequence[str]:
    """Return clauses about what takes time in each step besides FLOPs; empty if nothing was found, or nothing is frozen.

    These are hooks, frozen parameters that the optimizer still steps, forward passes of frozen layers that backward makes
    again (which take `flops_again`), and `torch.compile`, which compiles a model again after each change of its flags;
    whether they have changed since it was compiled is not known.
    """
    if not selection.parameters:
        return ()
    found = []
    hooked = [name or "the model" for name, module in model.named_modules() if _has_hook(module, MODULE_HOOKS)]
    hooked += [name for name, parameter in model.named_parameters() if _has_hook(parameter, PARAMETER_HOOKS)]
    if hooked:
        found.append(f"hooks on {listed(hooked, most=3)} run in each step")
    held = [each for group in optimizer.param_groups for each in group["params"]] if optimizer is not None else []
    stepped = sum(each in selection and each.grad is not None for each in held)
    if stepped:
        what = (
            "a frozen parameter, whose gradient is" if stepped == 1 else f"{stepped} frozen parameters, whose gradients are"
        )
        found.append(f"{type(optimizer).__name__} steps {what} not None")
    if flops_again:
        found.append(f"checkpointing makes forward passes of frozen layers again in backward, for {flops_text(flops_again)}")
    if is_compiled(model):
        found.append("torch.compile compiles the model again in the first step after a change of flags")
    return found


def _has_hook(owner: object, kinds: Sequence[str]) -> bool:
    """Return whether a module or parameter has a hook of one of these kinds."""
    return any(getattr(owner, kind, None) for kind in kinds)

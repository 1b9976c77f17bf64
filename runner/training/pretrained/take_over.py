"""Give a model other classes than its weights have: the layers that depend on their number are those of a fresh model."""

from __future__ import annotations

from torch import Tensor, nn


def take_over_layers(model: nn.Module, fresh: nn.Module) -> frozenset[str]:
    """Move into `model` each layer of `fresh` whose own tensors have other shapes; return the names of the tensors moved.

    `fresh`: the same architecture, built for other classes. A layer is moved as a whole, with all its own parameters and
    buffers. Each attribute that is a whole number and differs is copied too, such as `num_classes` of a detection head.
    Modules that only one of the two has stay as they are.
    """
    fresh_modules = dict(fresh.named_modules(remove_duplicate=False))
    new: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        other = fresh_modules.get(path)
        if other is None:
            continue
        for name, value in vars(other).items():
            if type(value) is int and type(vars(module).get(name)) is int:
                setattr(module, name, value)
        theirs = _own_tensors(other)
        if any(name in theirs and theirs[name].shape != tensor.shape for name, tensor in _own_tensors(module).items()):
            for name, tensor in theirs.items():
                setattr(module, name, tensor)
            new |= {f"{path}.{name}" if path else name for name in theirs}
    return frozenset(new)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return {name: tensor} of the parameters and buffers of a module itself, without those of its children."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}

"""Find the blocks of a model: the modules that it repeats, such as the layers of a transformer."""

from __future__ import annotations

from collections import Counter

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(model: nn.Module) -> set[str]:
    """Return the names of the blocks of a model, those within other blocks included.

    A block is a module that has children, lies directly in a container (Sequential, ModuleList or ModuleDict), and whose
    class stands there several times. The only module of a container is a block too, for a model may be one block deep,
    unless the container is the model itself.
    """
    blocks = set()
    for name, container in model.named_modules(remove_duplicate=False):
        if isinstance(container, CONTAINERS):
            children = {key: child for key, child in container.named_children() if not is_leaf(child)}
            times = Counter(type(child) for child in children.values())
            is_single = len(list(container.children())) == 1 and name != ""
            blocks |= {
                f"{name}.{key}".lstrip(".")
                for key, child in children.items()
                if not isinstance(child, CONTAINERS) and (times[type(child)] > 1 or is_single)
            }
    return blocks


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module has no children."""
    return not any(True for _ in module.children())

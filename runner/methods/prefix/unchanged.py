"""Notice that the weights of a frozen prefix changed all the same, so that its stored outputs are no longer its outputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.tensors import as_integers, same_bits

SAMPLE = 16  # elements of a tensor that are compared before each step


class UnchangedTensors:
    """Compares tensors with copies of what they were when it was made.

    A full comparison reads all of them, which may take longer than the step that was saved. So before most steps only what
    could have changed is looked for: a tensor whose version or address is another than at the last comparison, that has a
    gradient, with which an optimizer may step it without a trace, or in which one of a few elements has other bits. Before
    steps 1, 2, 4, 8, ... all bits are compared.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self.copies = [tensor.detach().clone() for tensor in self.tensors]
        self.marks = self._marks()
        self.asked = 0
        self.samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}  # views of the tensors
        for tensor in self.tensors:
            if tensor.is_contiguous() and tensor.numel():
                self.samples.setdefault((tensor.dtype, tensor.device), []).append(_sample(tensor))
        self.sampled = {kind: torch.cat(views) for kind, views in self.samples.items()}

    def are_unchanged(self) -> bool:
        """Return whether all tensors have the bits of the copies, as far as this is looked for; call it before each step."""
        self.asked += 1
        is_power_of_two = self.asked & (self.asked - 1) == 0
        return self.have_the_same_bits() if is_power_of_two else self.show_no_change()

    def show_no_change(self) -> bool:
        """Return False if a tensor has other bits than its copy, as far as its version, address and gradient show."""
        marks = self._marks()
        if marks == self.marks and all(tensor.grad is None for tensor in self.tensors) and self._samples_are_the_same():
            return True
        self.marks = marks
        return self.have_the_same_bits()

    def have_the_same_bits(self) -> bool:
        """Return whether all tensors have the bits of the copies; reads all of them."""
        return all(map(same_bits, self.copies, self.tensors))

    def _samples_are_the_same(self) -> bool:
        """Return whether a few elements of each contiguous tensor, spread over it, have the bits that they had."""
        return all(torch.equal(torch.cat(views), self.sampled[kind]) for kind, views in self.samples.items())

    def _marks(self) -> list[tuple[int, int]]:
        """Return the version and the address of each tensor."""
        return [(tensor._version, tensor.data_ptr()) for tensor in self.tensors]


def _sample(tensor: Tensor) -> Tensor:
    """Return about SAMPLE elements of a contiguous tensor, evenly spread, as a view of their bits."""
    flat = as_integers(tensor.detach().view(-1))
    return flat[:: max(1, flat.numel() // SAMPLE)]


def tensors_of(model: nn.Module, modules: Iterable[str]) -> list[Tensor]:
    """Return the parameters and buffers of some modules of a model, and of all modules in them."""
    found = [model.get_submodule(name) for name in modules]
    return [tensor for module in found for tensor in (*module.parameters(), *module.buffers())]

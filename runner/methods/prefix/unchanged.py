"""Notice that the weights of a frozen prefix changed all the same, so that its stored outputs are no longer its outputs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from runner.tensors import same_bits


class UnchangedTensors:
    """Compares tensors with copies of what they were when it was made.

    A full comparison reads all of them, which may take longer than the step that was saved. So before most steps only what
    could have changed is looked for: a tensor whose version or address is another than at the last comparison, or that has a
    gradient, with which an optimizer may step it without a trace. Before steps 1, 2, 4, 8, ... all bits are compared.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self.copies = [tensor.detach().clone() for tensor in self.tensors]
        self.marks = self._marks()
        self.asked = 0

    def are_unchanged(self) -> bool:
        """Return whether all tensors have the bits of the copies, as far as this is looked for; call it before each step."""
        self.asked += 1
        is_power_of_two = self.asked & (self.asked - 1) == 0
        return self.have_the_same_bits() if is_power_of_two else self.show_no_change()

    def show_no_change(self) -> bool:
        """Return False if a tensor has other bits than its copy, as far as its version, address and gradient show."""
        marks = self._marks()
        if marks == self.marks and all(tensor.grad is None for tensor in self.tensors):
            return True
        self.marks = marks
        return self.have_the_same_bits()

    def have_the_same_bits(self) -> bool:
        """Return whether all tensors have the bits of the copies; reads all of them."""
        return all(map(same_bits, self.copies, self.tensors))

    def _marks(self) -> list[tuple[int, int]]:
        """Return the version and the address of each tensor."""
        return [(tensor._version, tensor.data_ptr()) for tensor in self.tensors]


def tensors_of(model: nn.Module, modules: Iterable[str]) -> list[Tensor]:
    """Return the parameters and buffers of some modules of a model, and of all modules in them."""
    found = [model.get_submodule(name) for name in modules]
    return [tensor for module in found for tensor in (*module.parameters(), *module.buffers())]

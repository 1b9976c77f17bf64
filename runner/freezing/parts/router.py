"""Find the routers of a model: the layers that say which experts of a mixture of experts take which token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from torch import Tensor, nn

from runner.freezing.parts.blocks import CONTAINERS, find_blocks, is_leaf
from runner.freezing.parts.evidence import Evidence
from runner.freezing.patterns import with_parents
from runner.freezing.words import Words

ROUTER_WORDS = ("gate", "gating", "rout")


@dataclass(frozen=True)
class Experts:
    """Modules or weights that may be the experts of a mixture.

    Attributes:
        name: the name of the module that holds them.
        count: their number; of matrices stacked in one, a multiple of it.
        sizes: the sizes of their weights, one of which is that of what they take.
        is_stacked: whether they are stacked in one matrix, so that their number is not known.
        is_sure: whether they are experts for certain if a matrix fits; else a name must say so.
    """

    name: str
    count: int
    sizes: Set[int]
    is_stacked: bool = False
    is_sure: bool = False

    def fit(self, name: str, matrix: Tensor) -> bool:
        """Return whether the matrix of this name may be their router."""
        rows, columns = matrix.shape
        says_so = any(word in name.lower() for word in ROUTER_WORDS)
        if self.is_stacked:
            return says_so and self.count % rows == 0 and columns in self.sizes
        return rows == self.count and columns in self.sizes and (self.is_sure or says_so or "expert" in self.name.lower())


def find_routers(model: nn.Module, evidence: Evidence, words: Words) -> Sequence[str]:
    """Return the names of the routers of a model: modules, or parameters of a module that is more than a router.

    A router is a matrix whose first size is the number of the experts beside it, and whose second is a size of theirs. The
    experts are the modules of one class in a ModuleList or ModuleDict, or the first dimension of a weight that has three and
    is no convolution's. Beside is in the smallest module around them, within their block, that has such a matrix. Where the
    experts have no children or are in no block, they may be layers that are called one after the other: then `expert` must
    be in their name, or `gate`, `gating` or `rout` in that of the matrix.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    blocks = find_blocks(model)
    found: dict[str, None] = {}
    for experts in _possible_experts(modules, blocks):
        around = with_parents(experts.name)[:-1]
        block = next((count for count, part in reversed([*enumerate(around)]) if part in blocks), 0)
        for part in reversed(around[block:]):
            matrices = _last_matrices(modules[part], part, without=experts.name)
            fitting = [name for name, matrix in matrices if experts.fit(name, matrix)]
            owners = [name.rpartition(".")[0] for name in fitting]
            found |= dict.fromkeys(name if owner == part else owner for name, owner in zip(fitting, owners, strict=True))
            if fitting:
                break
    return [*found]


def _possible_experts(modules: Mapping[str, nn.Module], blocks: Set[str]) -> Iterator[Experts]:
    """Yield everything in a model that may be experts, by `{name: module}` and the names of its blocks."""
    for name, module in modules.items():
        in_block = not blocks.isdisjoint(with_parents(name))
        children = list(module.children())
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            sizes = {size for parameter in children[0].parameters() for size in parameter.shape} if children else set()
            if len(children) > 1 and len({type(child) for child in children}) == 1:
                yield Experts(name, len(children), sizes, is_sure=in_block and not is_leaf(children[0]))
        elif not isinstance(module, CONTAINERS) and not hasattr(module, "kernel_size"):
            own = list(module.parameters(recurse=False))
            for shape in {parameter.shape for parameter in own if parameter.dim() == 3 and len(parameter) > 1}:
                yield Experts(name, shape[0], {*shape[1:]}, is_sure=in_block)
            matrices = [parameter.shape for parameter in own if parameter.dim() == 2]
            if "expert" in name.lower() and len(matrices) > 1:
                yield Experts(name, matrices[0][0], {*matrices[0][1:]}, is_stacked=True)


def _last_matrices(module: nn.Module, prefix: str, without: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, matrix) for the matrices of a module itself, and for the last matrix in each of its children.

    The last one makes what the child returns. `prefix` is the name of the module. A child that is or contains the module
    with the name `without` is left out.
    """
    before = f"{prefix}." if prefix else ""
    for key, parameter in module.named_parameters(recurse=False):
        if _is_matrix(parameter):
            yield before + key, parameter
    for key, child in module.named_children():
        matrices = [
            (f"{before}{key}.{name}.{own}".replace("..", "."), parameter)
            for name, part in child.named_modules()
            if not isinstance(part, (nn.Embedding, nn.EmbeddingBag))  # tables are looked up, and multiply nothing
            for own, parameter in part.named_parameters(recurse=False)
            if _is_matrix(parameter)
        ]
        if matrices and before + key not in with_parents(without):
            yield matrices[-1]


def _is_matrix(parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix of several rows."""
    return parameter.dim() == 2 and len(parameter) > 1

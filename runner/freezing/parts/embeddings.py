"""Find the embeddings of a model: tables of tokens and positions, and parameters that are added to the input."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from runner.freezing.parts.blocks import CONTAINERS, find_blocks, is_leaf
from runner.freezing.parts.evidence import Evidence
from runner.freezing.parts.norms import is_norm
from runner.freezing.patterns import with_parents
from runner.freezing.words import Words

EMBEDDING_CLASS = re.compile("embed|encoding|position|token")


def find_embeddings(model: nn.Module, evidence: Evidence, words: Words) -> Sequence[str]:
    """Return the names of the embeddings of a model: Embedding and EmbeddingBag modules, and bare parameters.

    A bare parameter belongs to a module that is no layer, as a class token or a position embedding does. An embedding stands
    outside of all blocks, and a block follows it in the smallest part of the model around it that has blocks: a decoder's
    positions count though the blocks of the encoder come before them. In a model without blocks all Embedding modules count,
    and no bare parameter. The convolution of a patch embedding is a layer, and no embedding in this sense.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    blocks = find_blocks(model)
    position = {name: count for count, name in enumerate(modules)}
    found = []
    for name, module in modules.items():
        around = with_parents(name)
        if blocks.intersection(around):
            continue
        stack = next((part for part in reversed(around) if any(_is_within(block, part) for block in blocks)), None)
        later = [block for block in blocks if stack is not None and _is_within(block, stack)]
        if later and max(position[block] for block in later) < position[name]:
            continue
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            found.append(name)
        elif later:
            found += [f"{name}.{key}".lstrip(".") for key in _bare_parameters(module)]
    return found


def _is_within(name: str, part: str) -> bool:
    """Return whether the name is that of something inside the module `part`; "" is the model."""
    return not part or name.startswith(f"{part}.")


def _bare_parameters(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of a module that are not those of a layer: none if it is a layer itself.

    A module without children is a layer, unless its class is a list of parameters or called after embeddings (torchvision's
    PositionalEncoding). A scalar (CLIP's `logit_scale`), and what is called weight or bias (`in_proj_weight`), are those of
    a layer.
    """
    is_list = isinstance(module, nn.ParameterList)
    is_layer = is_leaf(module) and not is_list and not EMBEDDING_CLASS.search(type(module).__name__.lower())
    if is_layer or is_norm(module) or isinstance(module, CONTAINERS):
        return
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.numel() > 1 and not key.endswith(("weight", "weights", "bias")):
            yield key

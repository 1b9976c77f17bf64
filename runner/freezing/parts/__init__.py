"""Named parts, such as `@head`: patterns whose modules and parameters are found in the model itself."""

from __future__ import annotations

from runner.freezing.parts.adapters import find_adapters
from runner.freezing.parts.embeddings import find_embeddings
from runner.freezing.parts.flags import find_as_built
from runner.freezing.parts.head import find_head
from runner.freezing.parts.norms import find_norms
from runner.freezing.parts.part import Part
from runner.freezing.parts.router import find_routers
from runner.freezing.parts.vision import find_vision

PARTS = {
    "@head": Part(find_head, "it has no head"),
    "@embeddings": Part(
        find_embeddings, "no Embedding and no bare parameter, such as a class token, comes before its blocks"
    ),
    "@norms": Part(find_norms, "it has no norm layer with parameters"),
    "@adapters": Part(find_adapters, "its builder froze nothing, or left nothing trainable beside the head"),
    "@router": Part(find_routers, "no matrix has as many rows as there are experts beside it"),
    "@vision": Part(find_vision, "no module takes the picture of a batch and nothing else of it"),
    "@as_built": Part(find_as_built, "no parameter has requires_grad=False as built", may_be_absent=True),
}

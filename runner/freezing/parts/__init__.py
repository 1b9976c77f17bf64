"""Named parts, such as `@head`: patterns whose modules and parameters are found in the model itself."""

from __future__ import annotations

from runner.freezing.parts.flags import find_as_built
from runner.freezing.parts.head import find_head
from runner.freezing.parts.part import Part

PARTS = {
    "@head": Part(find_head, "it has no head"),
    "@as_built": Part(find_as_built, "no parameter has requires_grad=False as built", may_be_absent=True),
}

"""Freeze it, prove it, price it: a config-driven experiment runner for freezing parameters in PyTorch.

The public names are imported when they are first used (PEP 562), so that `import runner` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.cost.price import price as price
    from runner.foresight.foresee import foresee as foresee
    from runner.freezing.selection import select as select
    from runner.methods.base import FreezingMethod as FreezingMethod
    from runner.proof.audit import audit as audit
    from runner.proof.checkpoints.difference import diff as diff
    from runner.runs.job import run as run

__version__ = "0.1.0"
__all__ = ["FreezingMethod", "audit", "diff", "foresee", "price", "run", "select"]

_MODULE_OF = {
    "FreezingMethod": "runner.methods.base",
    "audit": "runner.proof.audit",
    "diff": "runner.proof.checkpoints.difference",
    "foresee": "runner.foresight.foresee",
    "price": "runner.cost.price",
    "run": "runner.runs.job",
    "select": "runner.freezing.selection",
}


def __getattr__(name: str) -> Any:
    """Import a public name of the package when it is first used, and return it. Raises AttributeError for other names."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'runner' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names of the package, for `dir()` and completion."""
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])

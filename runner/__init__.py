"""Freeze it, prove it, price it: a config-driven experiment runner for freezing parameters in PyTorch.

The public words are imported when they are first used (PEP 562), so that `import runner` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.freezing.selection import select as select
    from runner.methods.base import FreezingMethod as FreezingMethod
    from runner.proof.audit import audit as audit
    from runner.runs.job import run as run

__version__ = "0.1.0"
__all__ = ["FreezingMethod", "audit", "run", "select"]

_HOME = {
    "FreezingMethod": "runner.methods.base",
    "audit": "runner.proof.audit",
    "run": "runner.runs.job",
    "select": "runner.freezing.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'runner' has no attribute {name!r}; it offers {', '.join(__all__)}")
    word = getattr(import_module(_HOME[name]), name)
    globals()[name] = word
    return word


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])

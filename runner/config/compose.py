"""Compose this project's config in this process, with Hydra 1.3 or 1.4 (Python 3.14 needs 1.4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import hydra
from hydra import initialize_config_dir
from omegaconf import DictConfig

from runner.config.resolvers import register_resolvers
from runner.config.schema import CONF

HYDRA_1_4 = tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)
VERSION_BASE = {} if HYDRA_1_4 else {"version_base": "1.3"}  # 1.3 warns if it is missing, 1.4 if it is given


def allow_any_target() -> AbstractContextManager[object]:
    """Return a context manager in which Hydra 1.4 calls every `_target_` without a warning, as Hydra 1.3 does."""
    if not HYDRA_1_4:
        return nullcontext()
    from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, execution_whitelist  # type: ignore[attr-defined]

    return execution_whitelist(UNSAFE_DISABLE_EXECUTION_CHECKS)


@contextmanager
def hydra_initialized() -> Iterator[None]:
    """Inside the block, Hydra is initialized with this project's folder `conf`, so that `hydra.compose` finds its files."""
    register_resolvers()
    with allow_any_target(), initialize_config_dir(str(CONF), job_name="runner", **VERSION_BASE):
        yield


def compose_config(*overrides: str) -> DictConfig:
    """Return the default config with overrides such as `"method=zero_lr"` applied, not checked yet.

    Raises the error of Hydra or OmegaConf if an override is wrong.
    """
    with hydra_initialized():
        return hydra.compose("config", list(overrides))

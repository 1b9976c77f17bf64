"""This project's config composed in this process, by Hydra 1.3 or 1.4 (Python 3.14 needs 1.4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import hydra
from hydra import initialize_config_dir
from omegaconf import DictConfig

from runner.config.naming import register_resolvers
from runner.config.schema import CONF

HYDRA_1_4 = tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)
VERSION_BASE = {} if HYDRA_1_4 else {"version_base": "1.3"}  # 1.3 warns where it is missing, 1.4 where it is given


def any_target() -> AbstractContextManager[object]:
    """A context in which Hydra calls whatever class a config names, as Hydra 1.3 does; Hydra 1.4 warns outside of it."""
    if not HYDRA_1_4:
        return nullcontext()
    from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, execution_whitelist  # type: ignore[attr-defined]

    return execution_whitelist(UNSAFE_DISABLE_EXECUTION_CHECKS)


@contextmanager
def hydra_initialized() -> Iterator[None]:
    """A context in which Hydra finds this project's configs, for `hydra.compose` and for a run."""
    register_resolvers()
    with any_target(), initialize_config_dir(str(CONF), job_name="runner", **VERSION_BASE):
        yield


def composed(*overrides: str) -> DictConfig:
    """The default config with these overrides. Raises Hydra's and OmegaConf's own errors."""
    with hydra_initialized():
        return hydra.compose("config", list(overrides))

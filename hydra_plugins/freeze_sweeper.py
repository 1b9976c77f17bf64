"""The grid sweeper of freeze-runner. Hydra finds it only here, and loads it for every Hydra app: it imports hydra alone."""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore


@dataclass
class FreezeSweeperConf:
    _target_: str = "hydra_plugins.freeze_sweeper.FreezeSweeper"
    params: dict[str, str] | None = None


class FreezeSweeper(BasicSweeper):
    """Hydra's grid, with duplicates dropped, what is finished kept, and one table at the end."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Any:
        from runner.sweep import sweep

        return sweep(self, arguments)


ConfigStore.instance().store(group="hydra/sweeper", name="freeze", node=FreezeSweeperConf, provider="freeze-runner")

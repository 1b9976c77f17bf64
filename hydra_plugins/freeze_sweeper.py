"""The grid sweeper of freeze-runner. Hydra finds it only here, and loads it for every Hydra app: it imports only hydra."""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class FreezeSweeperConf:
    """The config of the sweeper. `params`: by key, the values to sweep over in addition to those of the command line."""

    _target_: str = "hydra_plugins.freeze_sweeper.FreezeSweeper"
    params: dict[str, str] | None = None


class FreezeSweeper(BasicSweeper):
    """Hydra's grid sweep, without duplicate runs and runs that have already finished, and with a report at the end."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Any:
        """Carry out the sweep that the overrides `arguments` declare; called by Hydra."""
        from runner.sweep.drive import sweep

        config, context, launcher = self.config, self.hydra_context, self.launcher
        assert config is not None
        assert context is not None
        assert launcher is not None
        parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        (override_lists,) = self.split_arguments(parsed, max_batch_size=None)
        return sweep(config, context, launcher, [list(overrides) for overrides in override_lists])


ConfigStore.instance().store(group="hydra/sweeper", name="freeze", node=FreezeSweeperConf, provider="freeze-runner")

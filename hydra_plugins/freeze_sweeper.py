"""The Hydra plugin of freeze-runner: its grid sweeper.

Hydra looks for plugins only in the package `hydra_plugins`, and imports them in every Hydra app. So importing this file
imports only hydra.
"""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class FreezeSweeperConf:
    """The config of the sweeper, `hydra.sweeper`.

    `params`: {key: values to sweep over, as text, such as "1,2,3"}, in addition to the values given on the command line.
    """

    _target_: str = "hydra_plugins.freeze_sweeper.FreezeSweeper"
    params: dict[str, str] | None = None


class FreezeSweeper(BasicSweeper):
    """A Hydra sweeper that runs all combinations of the given values, and writes a report at the end.

    In contrast to Hydra's own grid sweeper, it leaves out runs with equal configs and runs that have already finished.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Any:
        """Carry out the sweep that `arguments` declare: overrides such as `method=zero_lr,none`. Hydra calls this method."""
        from runner.sweep.drive import sweep
        from runner.sweep.grid import last_of_each_key, refuse_too_many_runs

        config, context, launcher = self.config, self.hydra_context, self.launcher
        assert config is not None
        assert context is not None
        assert launcher is not None
        parsed = OverridesParser.create(config_loader=context.config_loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        parsed = last_of_each_key(parsed)
        refuse_too_many_runs(config, parsed)  # before their list is built
        (override_lists,) = self.split_arguments(parsed, max_batch_size=None)
        return sweep(config, context, launcher, [list(overrides) for overrides in override_lists])


ConfigStore.instance().store(group="hydra/sweeper", name="freeze", node=FreezeSweeperConf, provider="freeze-runner")

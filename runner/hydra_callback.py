"""What is done before Hydra makes a run's folder: refuse what composing can find, or look first (`plan=true`)."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runner.config.check import check
from runner.config.hydra_errors import short_message
from runner.config.naming import register_resolvers
from runner.contract import EXIT_DONE, EXIT_FAILED
from runner.errors import ConfigError, Refused
from runner.runs.folder import contains_run

register_resolvers()  # at import, for the config names this module in each process that composes or runs it


class BeforeRun(Callback):
    """Hydra's callback of a single run; it speaks by SystemExit, for Hydra turns a callback's exceptions into warnings."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            checked = check(config)
            if checked.resume:
                raise ConfigError("resume=last goes on with a sweep; add -m")
            if checked.plan:
                from runner.foresight.plan import show_plan
                from runner.runs.console import create_console

                show_plan(checked, create_console())
                raise SystemExit(EXIT_DONE)
            folder = Path(config.hydra.run.dir)
            if contains_run(folder):
                raise ConfigError(f"hydra.run.dir={folder} holds a run already; give a folder of its own")
        except (ConfigError, OmegaConfBaseException) as error:
            raise Refused(" ".join(short_message(error).split())) from error
        except Exception as error:  # a bug in the user's class, met by a plan; there is no log to hold its traceback
            traceback.print_exc()
            raise SystemExit(EXIT_FAILED) from error

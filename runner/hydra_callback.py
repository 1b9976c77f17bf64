"""A Hydra callback that checks the config of a single run, or predicts its result, before Hydra creates the run's folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runner.config.check import check
from runner.config.hydra_errors import short_message
from runner.config.resolvers import register_resolvers
from runner.config.schema import Config
from runner.contract import EXIT_DONE, EXIT_FAILED
from runner.errors import ConfigError, Refused
from runner.runs.exits import end_once, guard_process
from runner.runs.folder import contains_run
from runner.runs.record import error_line as describe
from runner.runs.text import error_line

register_resolvers()  # here, because every process of a sweep imports this module: the config names it


def print_plan(config: Config) -> int:
    """Print what training would change, and return an exit code: 1 if the user's code ended the process, otherwise 0."""
    from runner.display.console import create_console
    from runner.foresight.plan import show_plan

    def fail(reason: str) -> int:
        print(error_line(f"failed: {reason}"), file=sys.stderr)
        return EXIT_FAILED

    try:
        with end_once(fail, Path(os.devnull)) as end, guard_process(end):
            show_plan(config, create_console())
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # a SystemExit, or any other that a user's class raised
        return fail(describe(error))
    return EXIT_DONE


class BeforeRun(Callback):
    """Refuse a wrong config before a single run begins; with `plan=true`, print a plan instead of running.

    A plan predicts from one batch how every tensor will change. Exceptions are of type SystemExit, because Hydra only prints
    a warning for any other exception that a callback raises.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the config before Hydra makes the run's folder; Hydra calls this with the composed config.

        Raises Refused if the config is wrong or the folder already contains a run. With `plan=true`, prints what training
        would change and raises SystemExit, so that no run follows.
        """
        try:
            checked = check(config)
            if checked.resume:
                raise ConfigError("resume=last resumes a sweep; add -m")
            if checked.plan:
                raise SystemExit(print_plan(checked))
            folder = Path(config.hydra.run.dir)
            if contains_run(folder):
                raise ConfigError(f"hydra.run.dir={folder} already contains a run; give another folder")
        except (ConfigError, OmegaConfBaseException) as error:
            raise Refused(" ".join(short_message(error).split())) from error
        except Exception as error:  # a bug in a user's class, met by a plan, which has no log
            print(error_line(f"the plan failed: {describe(error)}"), file=sys.stderr)
            raise SystemExit(EXIT_FAILED) from error

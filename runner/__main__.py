"""The Hydra door: `python -m runner`, and the console script `freeze-runner`."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import runner
from runner.before import Refused
from runner.config import CONF
from runner.errors import ConfigError
from runner.refusal import short_message


def main() -> int:
    """Carry out the command line and return its exit code; see the table of exit codes in the README."""
    if sys.argv[1:] == ["--version"]:
        print(f"freeze-runner {runner.__version__}")
        return 0
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own `_target_`, under the console script too
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would otherwise print, and exit 1 for
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> int:
        code = carry_out(config)
        codes.append(code)
        return code

    try:
        job()
    except KeyboardInterrupt:
        print("freeze-runner: interrupted", file=sys.stderr)
        return 130
    except Refused as refused:
        return refuse(str(refused.code))
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        return refuse(short_message(error, sys.argv[1:]))
    except OSError as error:
        return refuse(f"cannot write {error.filename or 'the output folder'}: {error.strerror}; give hydra.run.dir=DIR")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 0 if left.code is None else refuse(str(left.code))
    except Exception:
        traceback.print_exc()
        return 1
    return max(codes, default=0)


def carry_out(config: DictConfig) -> int:
    """One run of this process, its progress and summary; returns its exit code."""
    from rich.console import Console

    from runner import job, summary

    console = Console(highlight=False, soft_wrap=True)
    with summary.progress(config.batches, console) as on_step:
        result = job.perform(config, on_step)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        print(summary.line(result), flush=True)
    elif result.rows:
        summary.show(result, title(), console)
    else:
        print(f"{result.record['reason']}\n(log: {result.folder / 'runner.log'})", file=sys.stderr)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result.exit_code


def title() -> str:
    """What was asked, in one line: the choices that make a run, then whatever else was overridden."""
    choices: dict[str, Any] = dict(HydraConfig.get().runtime.choices)
    nouns = ("method", "freeze", "model", "optimizer", "groups", "data")
    said = [f"{noun}={choices[noun]}" for noun in nouns if noun in choices]
    rest = [text for text in HydraConfig.get().overrides.task if text.split("=")[0].lstrip("+~") not in nouns]
    return " ".join([*said, *rest])


def refuse(message: str) -> int:
    """Say one short message where errors go; returns exit code 2."""
    print(f"freeze-runner: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

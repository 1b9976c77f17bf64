"""The Hydra door: `python -m runner`, and the console script `freeze-runner`."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import runner
from runner.config.compose import VERSION_BASE, any_target
from runner.config.hydra_errors import short_message
from runner.config.naming import CUSTOM, freeze_name, method_choice, register_resolvers
from runner.config.schema import CONF, steps_of
from runner.contract import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, LOG, WITH_TABLES
from runner.errors import ConfigError, Refused
from runner.runs.interrupts import exit_at_once, handle_interrupts


def main() -> int:
    """Carry out the command line and return its exit code; see the table of exit codes in the README."""
    if sys.argv[1:] == ["--version"]:
        print(f"freeze-runner {runner.__version__}")
        return EXIT_DONE
    try:
        with handle_interrupts(exit_at_once):
            return through_hydra()
    except KeyboardInterrupt:
        print("freeze-runner: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Refused as refused:
        return refuse(str(refused.code))
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return refuse(short_message(error))
    except OSError as error:
        where = error.filename or "the output folder"
        return refuse(f"cannot write {where}: {error.strerror}; give hydra.run.dir=DIR (hydra.sweep.dir in a sweep)")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else EXIT_DONE if left.code is None else refuse(str(left.code))
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(("Only one of --", "Config group override")):  # Hydra's
            return refuse(str(error))
        traceback.print_exc()
        return EXIT_FAILED


def through_hydra() -> int:
    """Let Hydra read the command line and call what it asks for; returns the worst exit code of its runs."""
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would otherwise print, and exit 1 for
    codes: list[int] = []

    @hydra.main(**VERSION_BASE, config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> None:
        try:
            codes.append(carry_out(config))
        except BrokenPipeError:
            raise
        except OSError as error:
            print(f"freeze-runner: failed: the record cannot be written: {error}", file=sys.stderr)
            codes.append(EXIT_FAILED)
        except Exception:  # ours: what a run itself does wrong, `execute_run` records
            traceback.print_exc()
            codes.append(EXIT_FAILED)

    with any_target():
        job()
    return max(codes, default=EXIT_DONE)


def carry_out(config: DictConfig) -> int:
    """One run of its own, its progress, its summary and its page; returns its exit code."""
    from runner.runs import console, job

    terminal = console.create_console()
    shown: list[str] = []

    def on_note(text: str, *, urgent: bool = False) -> None:
        if urgent:
            shown.append(text)
            print(f"freeze-runner: warning: {text}", file=sys.stderr)

    with console.progress_bar(steps_of(config), terminal) as on_step:
        result = job.execute_run(config, on_step, on_note=on_note)
    if result.status in WITH_TABLES:
        from runner.report.files import write_run_page

        console.print_summary(result, title(config), terminal, printed_notes=shown)
        write_run_page(result.folder)
    else:
        refuse(f"{result.record['status']}: {result.record['reason']} (log: {console.display_path(result.folder / LOG)})")
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result.exit_code


def title(config: DictConfig) -> str:
    """What was asked, in one line: the choices that make a run, then whatever else was overridden."""
    choices: dict[str, Any] = dict(HydraConfig.get().runtime.choices)
    choices["freeze"] = freeze_name(config.freeze, choices["freeze"])
    choices["method"] = method_choice(config.method, choices["method"])
    nouns = ("method", "freeze", "model", "optimizer", "groups", "data")
    said = [f"{noun}={choices[noun]}" for noun in nouns]
    if choices["freeze"] == CUSTOM:
        said[1] = f"freeze.patterns=[{','.join(config.freeze.patterns)}] freeze.keep=[{','.join(config.freeze.keep)}]"
    told = (*nouns, "freeze.patterns", "freeze.keep")
    rest = [text for text in HydraConfig.get().overrides.task if text.split("=")[0].lstrip("+~") not in told]
    return " ".join([*said, *rest])


def refuse(message: str) -> int:
    """Say one short message where errors go; returns exit code 2."""
    print(f"freeze-runner: {message}", file=sys.stderr)
    return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())

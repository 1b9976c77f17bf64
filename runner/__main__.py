"""The command line: `python -m runner`, and the console script `freeze-runner`."""

from __future__ import annotations

from runner.shadowing import refuse_shadowed_libraries

refuse_shadowed_libraries()  # before a library is imported below

import os
import sys
import traceback
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runner
from runner.config.help.completion import is_query, readable_line
from runner.config.typos import refuse_typos
from runner.contract import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_STRICT, LOG, STATUSES_WITH_TABLES
from runner.errors import ConfigError, Refused
from runner.runs.exits import end_sooner, guard_process
from runner.runs.interrupts import exit_at_once, handle_interrupts
from runner.runs.text import error_line

if TYPE_CHECKING:  # Hydra and OmegaConf take longer to import than a typo to find
    from omegaconf import DictConfig


def main() -> int:
    """Do what the command line asks for, and return the process's exit code; docs/files.md lists the exit codes.

    Errors are printed to stderr: a user's mistake as one line, any other one with its traceback.
    """
    if sys.argv[1:] == ["--version"]:
        print(f"freeze-runner {runner.__version__}")
        return EXIT_DONE
    if is_query(sys.argv[1:]):
        return answer_shell()
    try:
        with handle_interrupts(exit_at_once), guard_process(sys.exit):
            refuse_typos(sys.argv[1:])
            return run_command()
    except KeyboardInterrupt:
        print(error_line("interrupted"), file=sys.stderr)
        return EXIT_INTERRUPTED
    except Refused as refused:
        return print_error(str(refused.code))
    except ConfigError as error:
        return print_error(str(error))
    except BrokenPipeError:  # the reader of the output has closed it, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except SystemExit as system_exit:
        code = EXIT_DONE if system_exit.code is None else system_exit.code
        return code if isinstance(code, int) else print_error(str(code))
    except Exception as error:
        return print_exception(error)


def run_command() -> int:
    """Do what the command line asks for, as Hydra reads it, and return an exit code; raises the errors that Hydra raises."""
    from runner.config.arguments import with_added_targets
    from runner.config.hydra_errors import refuse_wrong_arguments

    refuse_wrong_arguments(sys.argv[1:])
    sys.argv[1:] = with_added_targets(sys.argv[1:])
    return run_hydra()


def print_exception(error: Exception) -> int:
    """Print an exception to stderr, and return an exit code.

    One of Hydra or of the disk is one line; any other has its traceback, and must be the one that is being handled.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config.hydra_errors import raised_by_hydra, short_message

    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return print_error(short_message(error))
    if isinstance(error, OSError):
        path = error.filename or "the output folder"
        return print_error(f"cannot write {path}: {error.strerror}; give hydra.run.dir=DIR (hydra.sweep.dir in a sweep)")
    if raised_by_hydra(error):
        return print_error(short_message(error, sys.argv[1:]))
    traceback.print_exc()
    return EXIT_FAILED


def answer_shell() -> int:
    """Print how the line that is being typed can go on; an error is not printed, for it would stand in that line."""
    os.environ["COMP_LINE"] = readable_line(os.environ.get("COMP_LINE", ""))
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        try:
            return run_hydra()
        except (Exception, SystemExit):
            return EXIT_REFUSED


def run_hydra() -> int:
    """Let Hydra parse the command line and start a run, or a sweep of runs; return an exit code.

    It is the highest exit code of the runs that were carried out in this process, or 0 if there was none, as with `--help`.
    A sweep sets its exit code itself, by raising SystemExit. Raises the errors that Hydra raises.
    """
    import hydra
    from omegaconf.errors import OmegaConfBaseException

    from runner.config.compose import VERSION_BASE, allow_any_target
    from runner.config.hydra_errors import short_message
    from runner.config.resolvers import register_resolvers
    from runner.config.schema import CONF

    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets Hydra raise errors; otherwise it prints them and exits with 1
    codes: list[int] = []

    @hydra.main(**VERSION_BASE, config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> None:
        try:
            codes.append(run_and_report(config))
        except BrokenPipeError:
            raise
        except (ConfigError, OmegaConfBaseException) as error:  # of a user's config that lacks the callback `BeforeRun`
            codes.append(print_error(short_message(error)))
        except OSError as error:
            print(error_line(f"failed: cannot write the record: {error}"), file=sys.stderr)
            codes.append(EXIT_FAILED)
        except Exception:  # a bug outside the run itself, whose errors `execute_run` records
            traceback.print_exc()
            codes.append(EXIT_FAILED)

    with allow_any_target():
        job()
    return max(codes, default=EXIT_DONE)


def run_and_report(config: DictConfig) -> int:
    """Carry out one run, print a summary of it, write its HTML page into its folder, and return its exit code.

    `config`: the composed config. A progress bar is shown during the run. If the run was interrupted (Ctrl-C, SIGTERM), all
    files are written, and then KeyboardInterrupt is raised. A failed or skipped run prints only the reason, to stderr.
    """
    from hydra.core.hydra_config import HydraConfig

    from runner.display.console import create_console
    from runner.proof.verdict import strict_problems
    from runner.runs import console, job

    terminal = create_console()
    printed_notes: list[str] = []

    def on_note(text: str, *, urgent: bool = False) -> None:
        if urgent:
            printed_notes.append(text)
            print(error_line(f"warning: {text}"), file=sys.stderr)

    def print_end(status: str, reason: str) -> None:
        log = Path(HydraConfig.get().runtime.output_dir) / LOG
        print_error(f"{status}: {reason}", end=f" (log: {console.display_path(log)})")

    at_the_end = console.after_training(config.get("evaluate"), str(config.get("cost")))
    with console.progress_bar(terminal, at_the_end) as on_step:
        result = job.execute_run(config, on_step, on_note=on_note, before_exit=partial(print_end, "failed"))
    if result.status in STATUSES_WITH_TABLES:
        from runner.report.files import write_run_page

        verbose = config.get("verbose", False)
        console.print_summary(result, run_title(config), terminal, printed_notes=printed_notes, verbose=verbose)
        write_run_page(result.folder)
        if result.exit_code == EXIT_STRICT:
            print_error(f"strict: {'; '.join(strict_problems(result.record, result.rows))}")
    else:
        print_end(result.record["status"], result.record["reason"])
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result.exit_code


def run_title(config: DictConfig) -> str:
    """Return a title for a run: its main settings, such as `method=zero_lr`, then all other overrides that were given."""
    from hydra.core.hydra_config import HydraConfig

    from runner.config.naming import CUSTOM, freeze_name, method_choice

    choices: dict[str, Any] = dict(HydraConfig.get().runtime.choices)
    choices["freeze"] = freeze_name(config.freeze, choices["freeze"])
    choices["method"] = method_choice(config.method, choices["method"])
    groups = ("method", "freeze", "model", "optimizer", "groups", "data")
    settings = {group: f"{group}={choices[group]}" for group in groups}
    if choices["freeze"] == CUSTOM:
        patterns, keep = ",".join(config.freeze.patterns), ",".join(config.freeze.keep)
        settings["freeze"] = f"freeze.patterns=[{patterns}] freeze.keep=[{keep}]"
    included = (*groups, "freeze.patterns", "freeze.keep")
    overrides = HydraConfig.get().overrides.task
    others = [text for text in overrides if text.split("=")[0].lstrip("+~") not in included]
    return " ".join([*settings.values(), *others])


def print_error(message: str, end: str = "") -> int:
    """Print `message` and `end` as one line to stderr and return exit code 2; a long message is cut, `end` never is."""
    print(error_line(message, end), file=sys.stderr)
    return EXIT_REFUSED


def process() -> int:
    """Do what `main` does, in a process that then ends; return its exit code."""
    code = main()
    end_sooner()
    return code


if __name__ == "__main__":
    sys.exit(process())

"""What the commands that read files of runs and checkpoints have in common: a parser of arguments, and their exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from runner.contract import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED
from runner.errors import ConfigError
from runner.runs.text import error_line


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError instead of exiting, so that a wrong argument is reported in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with `message` and the usage."""
        raise ConfigError(f"{message} (usage: {self.usage})")


def exit_code(command: Callable[[], int]) -> int:
    """Call a command, and return its exit code, or that of what it raises, which is reported in one line.

    1: the process that reads stdout has closed the pipe. 2: an argument or a file is wrong. 130: interrupted.
    """
    try:
        return command()
    except ConfigError as error:
        message, code = str(error), EXIT_REFUSED
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        message, code = f"{error.filename or 'a file'}: {error.strerror or error}", EXIT_REFUSED
    except (UnicodeError, RecursionError) as error:  # names that no file or terminal takes, or of a thousand parts
        message, code = f"a name cannot be read or written ({type(error).__name__})", EXIT_REFUSED
    except KeyboardInterrupt:
        message, code = "interrupted", EXIT_INTERRUPTED
    print(error_line(message), file=sys.stderr)
    return code

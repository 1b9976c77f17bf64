"""`python -m runner.report DIR... [-o FILE]`: a table and a page from any run folders, of any age and from any machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from runner.contract import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, PAGE
from runner.errors import ConfigError
from runner.report.discover import find
from runner.report.ownership import ours
from runner.runs.folder import write_text
from runner.runs.text import clean, counted


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as everywhere in this project."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (usage: python -m runner.report DIR... [-o FILE])")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; returns 0 when the page is written, 2 where an argument is wrong."""
    try:
        given = arguments_of(arguments)
        report([Path(text) for text in given.folders], Path(given.out))
    except ConfigError as error:
        print(f"freeze-runner: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("freeze-runner: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DONE


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The folders and the page's name."""
    parser = Parser(prog="python -m runner.report", description="One table and one page from any run folders.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a run folder, a sweep folder, or any folder above such")
    parser.add_argument("-o", "--out", default=PAGE, metavar="FILE", help=f"the page (default: ./{PAGE})")
    return parser.parse_args(arguments)


def report(folders: Sequence[Path], out: Path) -> None:
    """Print the table of the runs below the folders, and write their page.

    Raises ConfigError where a folder or the page's place is wrong, or no run is found.
    """
    refuse_place(out)
    found = find(folders)
    if not found.runs:
        where = ", ".join(map(str, folders))
        beside = f"; {counted(found.foreign, 'folder')} of other Hydra projects passed over" if found.foreign else ""
        raise ConfigError(f"no run found below {where}{beside}; give a folder that holds run.json, or one above such")
    from runner.report.comparison import comparison, print_comparison
    from runner.report.files import page_of  # here, for pandas takes its time and an error should not
    from runner.report.page.render import unread
    from runner.runs.console import terminal
    from runner.runs.read import read_run

    runs = [read_run(folder, label) for label, folder in found.runs.items()]
    remarks = [clean(remark) for remark in found.remarks]
    if found.foreign:
        remarks.append(f"{counted(found.foreign, 'folder')} of other Hydra projects passed over")
    print_comparison(comparison(runs), terminal())
    for line in unread(runs, remarks):
        print(f"could not be read: {line}")
    title = clean(", ".join(folder.resolve().name for folder in folders)) or PAGE
    html = page_of(runs, title, remarks=remarks)
    try:
        write_text(out, html)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    print(f"page: {out}")


def refuse_place(out: Path) -> None:
    """Raise ConfigError where the page cannot be written, or would take the place of a file that is not one."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give -o a file, such as {out / PAGE}")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}; make it, or give -o another file")
    if not ours(out, PAGE):
        raise ConfigError(f"{out} was not written by freeze-runner, and is left as it is; give -o another file")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"cannot write into {out.parent}; give -o another file")


if __name__ == "__main__":
    sys.exit(main())

"""`python -m runner.report DIR... [-o FILE] [--markdown]`: a table and a page from run folders of any age and machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract import EXIT_DONE, PAGE
from runner.errors import ConfigError
from runner.report.command import Parser, exit_code
from runner.report.compare.discover import FoundRuns, find_runs
from runner.report.ownership import may_overwrite
from runner.runs.folder import write_text
from runner.runs.text import counted, printable

if TYPE_CHECKING:
    from runner.report.compare.run_set import RunSet


USAGE = "python -m runner.report DIR... [-o FILE] [--markdown]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ranking of the runs and the answer, write the HTML page, and return the exit code: see `exit_code`.

    `arguments`: the command-line arguments without the program's name; None stands for those of this process.
    """
    return exit_code(lambda: _report(parse_arguments(arguments)))


def _report(parsed: argparse.Namespace) -> int:
    """Print the ranking of the runs and the answer, write the HTML page, and return the exit code."""
    write_report([Path(text) for text in parsed.folders], Path(parsed.out) if parsed.out else None, parsed.markdown)
    return EXIT_DONE


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments: `folders` (a list of str), `out` (the path of the page, or None) and `markdown`.

    `arguments`: as in `main`. Raises ConfigError if an argument is wrong.
    """
    parser = Parser(prog="python -m runner.report", usage=USAGE, description="One table and one page from any run folders.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a run folder, a sweep folder, or any folder above these")
    parser.add_argument("-o", "--out", metavar="FILE", help=f"where to write the page (default: {PAGE} beside the runs)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, and write the page only where -o says")
    return parser.parse_args(arguments)


def write_report(folders: Sequence[Path], out: Path | None, markdown: bool = False) -> None:
    """Find the runs in and below `folders`, print a ranking with the answer, and write the HTML page to `out`.

    If `out` is None, the page is written beside the runs: into the folder, or the deepest one above several folders. With
    `markdown`, the report is printed as Markdown and nothing else is, and the page is written only where `out` says. Raises
    ConfigError if one of `folders` does not exist or is a file, if no run is found, if the page cannot be written, or if
    freeze-runner did not write the file that is there.
    """
    found = find_runs(folders)
    if not found.folders:
        places = ", ".join(map(str, folders)) + (f"; {foreign_text(found)}" if found.foreign else "")
        raise ConfigError(f"no run found below {places}; give a folder that holds run.json, or one above it")
    page = out or folder_above(folders) / PAGE
    if out or not markdown:
        check_page_path(page)
    # Imported only now: they are slow to import, and an error should not wait for them.
    from runner.display.console import create_console
    from runner.display.markdown import print_markdown
    from runner.report.markdown import report_markdown
    from runner.report.page.render import problem_lines, render_page
    from runner.report.terminal import print_left, print_report

    run_set = read_run_set(found, printable(", ".join(folder.resolve().name for folder in folders)) or PAGE, page.parent)
    if out or not markdown:
        try:
            write_text(page, render_page(run_set))
        except OSError as error:
            raise ConfigError(f"cannot write {page}: {error.strerror}") from error
    if markdown:
        print_markdown(report_markdown(run_set))
        return
    console = create_console()
    print_report(run_set, page, console, problem_lines(run_set))
    for left in run_set.to_go_on:
        print_left(*left, console)


def read_run_set(found: FoundRuns, title: str, folder: Path) -> RunSet:
    """Return the runs that were found, and what their sweeps were to run. `folder`: where the page is, or would be."""
    from runner.report.compare.run_set import RunSet, read_planned
    from runner.runs.read import read_run

    runs = [read_run(place, label) for label, place in found.folders.items()]
    problems = [printable(problem) for problem in found.problems] + ([foreign_text(found)] if found.foreign else [])
    planned = [plan for sweep in found.sweeps for plan in read_planned(sweep)]
    return RunSet.of(runs, title, folder, problems=problems, planned=planned)


def foreign_text(found: FoundRuns) -> str:
    """Return how many folders of other Hydra projects were skipped, as a text."""
    return f"{counted(found.foreign, 'folder')} of other Hydra projects skipped"


def folder_above(folders: Sequence[Path]) -> Path:
    """Return the deepest folder that holds all of `folders`, or is the only one. Raises ConfigError if there is none."""
    if len({folder.resolve() for folder in folders}) == 1:
        return folders[0]
    try:
        return Path(os.path.commonpath([folder.resolve() for folder in folders]))
    except ValueError as error:  # on several drives
        raise ConfigError(f"no folder holds all of {', '.join(map(str, folders))}; give -o a file") from error


def check_page_path(out: Path) -> None:
    """Raise ConfigError if no page can be written to `out`, or if a file is there that freeze-runner did not write."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give -o a file, such as {out / PAGE}")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}; make it, or give -o another file")
    if not may_overwrite(out, PAGE):
        raise ConfigError(f"{out} was not written by freeze-runner, and is left as it is; give -o another file")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"cannot write into {out.parent}; give -o another file")


if __name__ == "__main__":
    sys.exit(main())
